"""What is refused, and in which words: every problem of a file at once, nothing assumed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worthit.errors import SpecError, UnknownName
from worthit.spec.hf import from_config

Config = dict[str, Any]

LLAMA: Config = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
QWEN3 = LLAMA | {"model_type": "qwen3"}
GEMMA3 = LLAMA | {"model_type": "gemma3_text", "head_dim": 8}
DEEPSEEK: Config = LLAMA | {
    "model_type": "deepseek_v3",
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}


def without(config: Config, *names: str) -> Config:
    return {key: value for key, value in config.items() if key not in names}


def refusal(config: Config) -> SpecError:
    with pytest.raises(SpecError) as caught:
        from_config(config)
    return caught.value


ONE_PROBLEM: dict[str, tuple[Config, str]] = {
    "missing": (without(LLAMA, "hidden_size"), "hidden_size: missing; this model type needs it"),
    "missing experts": (
        without(MIXTRAL, "num_local_experts"),
        "num_local_experts: missing; this model type needs it",
    ),
    "a router of which two codes disagree": (
        DEEPSEEK
        | {
            "model_type": "deepseek_v2",
            "topk_method": "greedy",
            "n_group": 1,
            "norm_topk_prob": True,
        },
        "norm_topk_prob: understood here: False; got True",
    ),
    "negative": (
        LLAMA | {"num_hidden_layers": -2},
        "num_hidden_layers: must be a positive whole number, got -2",
    ),
    "zero": (LLAMA | {"vocab_size": 0}, "vocab_size: must be a positive whole number, got 0"),
    "text for a size": (
        LLAMA | {"hidden_size": "64"},
        "hidden_size: must be a positive whole number, got '64'",
    ),
    "truth for a size": (
        LLAMA | {"num_hidden_layers": True},
        "num_hidden_layers: must be a positive whole number, got True",
    ),
    "fraction for a size": (
        LLAMA | {"intermediate_size": 96.5},
        "intermediate_size: must be a positive whole number, got 96.5",
    ),
    "beyond any model": (
        LLAMA | {"vocab_size": 10**12},
        "vocab_size: must be at most 1,000,000,000, got 1000000000000",
    ),
    "layers beyond any model": (
        LLAMA | {"num_hidden_layers": 200_000},
        "num_hidden_layers: must be at most 10,000, got 200000",
    ),
    "rope factors": (
        LLAMA | {"rope_scaling": {"type": "longrope", "factor": 2.0, "long_factor": [1, "x"]}},
        "rope_scaling.long_factor: must be a list of numbers, got [1, 'x']",
    ),
    "text for a switch": (
        LLAMA | {"attention_bias": "yes"},
        "attention_bias: must be true or false, got 'yes'",
    ),
    "negative rope": (
        LLAMA | {"rope_theta": -1.0},
        "rope_theta: must be a positive number, got -1.0",
    ),
    "kv heads": (
        LLAMA | {"num_key_value_heads": 3},
        "num_key_value_heads: must divide num_attention_heads, got num_key_value_heads=3 and "
        "num_attention_heads=8; pick one of 1, 2, 4, 8",
    ),
    "heads": (
        LLAMA | {"num_attention_heads": 6, "num_key_value_heads": 6},
        "num_attention_heads: must divide hidden_size, got num_attention_heads=6 and "
        "hidden_size=64; pick one of 1, 2, 4, 8, 16, 32, 64",
    ),
    "odd rotation": (
        QWEN3 | {"head_dim": 7},
        "head_dim: must rotate an even number of a head's 7 channels, got 8",
    ),
    "too many experts used": (
        MIXTRAL | {"num_experts_per_tok": 5},
        "num_experts_per_tok: must be at most num_local_experts, got num_experts_per_tok=5 and "
        "num_local_experts=4",
    ),
    "expert groups": (
        DEEPSEEK | {"n_group": 3},
        "n_group: must divide n_routed_experts, got n_group=3 and n_routed_experts=8; "
        "pick one of 1, 2, 4, 8",
    ),
    "activation": (
        LLAMA | {"hidden_act": "mish"},
        "hidden_act: understood here: 'relu', 'relu2', 'gelu', 'gelu_new', 'gelu_fast', "
        "'gelu_pytorch_tanh', 'silu', 'swish'; got 'mish'",
    ),
    "rope kind": (
        LLAMA | {"rope_scaling": {"rope_type": "mrope", "factor": 2.0}},
        "rope_scaling.rope_type: understood here: 'default', 'linear', 'dynamic', 'yarn', "
        "'llama3', 'longrope', 'su'; got 'mrope'",
    ),
    "rope factor": (
        LLAMA | {"rope_scaling": {"type": "linear"}},
        "rope_scaling.factor: missing; this model type needs it",
    ),
    "rope setting": (
        LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0, "twist": 3}},
        "rope_scaling.twist: not understood for this model type, got 3",
    ),
    "rope not an object": (
        LLAMA | {"rope_scaling": 4},
        "rope_scaling: must be an object, got 4",
    ),
    "layer list length": (
        QWEN3 | {"layer_types": ["full_attention"]},
        "layer_types: must have one entry per layer, 2, got 1",
    ),
    "layer kind": (
        QWEN3 | {"layer_types": ["full_attention", "linear_attention"]},
        "layer_types: understood here: full_attention, sliding_attention; got linear_attention",
    ),
    "local without a window": (
        QWEN3 | {"layer_types": ["full_attention", "sliding_attention"]},
        "layer_types: says sliding_attention, and no sliding_window is in use",
    ),
    "not causal": (
        GEMMA3 | {"use_bidirectional_attention": True},
        "use_bidirectional_attention: understood here: False; got True",
    ),
    "moe in a dense type": (
        LLAMA | {"num_local_experts": 8},
        "num_local_experts: not understood for this model type, got 8; "
        "remove it if it changes no shape",
    ),
    "slip of a key": (
        without(LLAMA, "num_key_value_heads") | {"num_key_values_heads": 4},
        "num_key_values_heads: not understood for this model type, got 4; "
        "did you mean num_key_value_heads?",
    ),
    "position kind in words": (
        LLAMA | {"position_embedding_type": "alibi"},
        "position_embedding_type: not understood for this model type, got 'alibi'",
    ),
    "cross attention": (
        LLAMA | {"add_cross_attention": True},
        "add_cross_attention: not understood for this model type, got True",
    ),
    "dtype": (
        LLAMA | {"torch_dtype": "float8"},
        "torch_dtype: understood: bfloat16, float16, float32; got 'float8'",
    ),
    "quantization method": (
        LLAMA | {"quantization_config": {"quant_method": "aqlm"}},
        "quantization_config.quant_method: understood: fp8, mxfp4, gptq, awq, bitsandbytes, "
        "compressed-tensors, worthit; got 'aqlm'",
    ),
    "quantization width": (
        LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 3, "group_size": 128}},
        "got '3 bits in groups of 128'",
    ),
}


@pytest.mark.parametrize("case", ONE_PROBLEM)
def test_one_problem_is_named_with_its_path(case: str) -> None:
    config, message = ONE_PROBLEM[case]
    with pytest.raises(SpecError, match=re.escape(message)) as caught:
        from_config(config)
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith("config.json: ")


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL, QWEN3, GEMMA3, DEEPSEEK])
def test_the_untouched_configs_read(config: Config) -> None:
    assert from_config(config).n_layers == 2


def test_every_problem_of_a_file_comes_at_once() -> None:
    config = without(MIXTRAL, "vocab_size") | {
        "num_key_value_heads": 3,
        "intermediate_size": -1,
        "tie_word_embeddings": "no",
        "num_experts_per_tok": 9,
        "mystery": [1, 2],
        "rope_scaling": {"type": "yarn", "factor": "two", "odd": 1},
        "quantization_config": {"quant_method": "quip"},
    }
    paths = {line.split(":")[0] for line in refusal(config).problems}
    assert paths == {
        "vocab_size",
        "num_key_value_heads",
        "intermediate_size",
        "tie_word_embeddings",
        "num_experts_per_tok",
        "mystery",
        "rope_scaling.factor",
        "rope_scaling.odd",
        "quantization_config.quant_method",
    }


def test_a_bad_size_is_not_blamed_on_what_must_fit_it() -> None:
    assert refusal(LLAMA | {"num_attention_heads": 0}).problems == (
        "num_attention_heads: must be a positive whole number, got 0",
    )


def test_an_unknown_model_type_names_the_nearest() -> None:
    with pytest.raises(
        UnknownName, match=r"unknown model type 'qwen3-moe'; did you mean qwen3_moe"
    ):
        from_config(LLAMA | {"model_type": "qwen3-moe"})
    with pytest.raises(UnknownName, match=r"text_config: unknown model type 'mistral4'.*mistral"):
        from_config({"model_type": "vlm", "text_config": {"model_type": "mistral4"}})


@pytest.mark.parametrize("model_type", [None, 3])
def test_a_file_without_a_model_type_is_refused(model_type: object) -> None:
    with pytest.raises(SpecError, match=r"config\.json: model_type: missing or not text"):
        from_config(LLAMA | {"model_type": model_type})


def test_a_file_that_holds_no_object_is_refused() -> None:
    with pytest.raises(SpecError, match=r"a\.json: must hold a JSON object, got list"):
        from_config([1], where="a.json")  # type: ignore[arg-type]  # what a user's file may hold


def test_errors_of_a_composite_name_its_text_config() -> None:
    text = LLAMA | {"num_key_value_heads": 3}
    with pytest.raises(SpecError, match=r"v\.json: text_config: num_key_value_heads: must divide"):
        from_config({"model_type": "llava", "text_config": text}, where="v.json")


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        ({}, "bf16"),
        ({"torch_dtype": "float16"}, "fp16"),
        ({"dtype": "float32"}, "fp32"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
            "fp8-block",
        ),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
            "int4-g128",
        ),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64}},
            "int4-g64",
        ),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "int8"),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {
                        "group_0": {
                            "weights": {"num_bits": 4, "type": "int", "group_size": 128},
                        }
                    },
                }
            },
            "int4-g128",
        ),
    ],
)
def test_weight_formats(config: Config, weights: str) -> None:
    precision = from_config(LLAMA | config).precision
    assert precision.weights == weights
    if "quantization_config" in config:
        assert precision.embeddings == precision.cache == "bf16"


def test_mxfp4_is_the_experts_format_alone() -> None:
    table = {"quantization_config": {"quant_method": "mxfp4"}}
    precision = from_config(LLAMA | table).precision
    assert precision.weights == precision.embeddings == "bf16"
    assert precision.of_experts == "mxfp4"


def test_switched_off_features_and_bookkeeping_change_nothing() -> None:
    extras = {
        "attention_dropout": 0.1,
        "bos_token_id": 5,
        "initializer_range": 0.02,
        "use_cache": True,
        "num_nextn_predict_layers": 0,
        "some_new_feature": False,
        "a_list": [],
        "transformers_version": "4.40.0",
    }
    assert from_config(LLAMA | extras) == from_config(LLAMA)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)
ROPE = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
QUANTIZED = {"quant_method": "gptq", "bits": 4, "group_size": 128}
WHOLE = [
    config | {"rope_scaling": ROPE, "quantization_config": QUANTIZED, "layer_types": None}
    for config in (LLAMA, MIXTRAL, QWEN3, GEMMA3, DEEPSEEK)
]


@settings(max_examples=300)
@given(data=st.data(), config=st.sampled_from(WHOLE), value=JSON)
def test_any_value_anywhere_is_read_or_refused(
    data: st.DataObject, config: Config, value: object
) -> None:
    key = data.draw(st.sampled_from(sorted(config)))
    table = config[key]
    if isinstance(table, dict) and data.draw(st.booleans()):
        value = table | {data.draw(st.sampled_from(sorted(table))): value}
    try:
        model = from_config(config | {key: value})
    except (SpecError, UnknownName):
        return
    assert model.n_layers >= 1
