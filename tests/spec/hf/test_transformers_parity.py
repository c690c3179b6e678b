"""Random configs of every decoder family against the reference modelling code.

Each config is built twice by `transformers`: on the meta device, whose unique parameters are the
expected total, and tiny on the CPU, where one prefill fills the cache whose elements are counted.
A sliding or chunked layer of `transformers` then holds the window less the next query's own key.
What the reference keeps as buffers (rotary tables, DeepSeek-V3's router correction) is trained by
no gradient and is not a parameter, there or here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from worthit.cost.cache import layer_cache
from worthit.cost.params import count_params
from worthit.spec.hf import from_config
from worthit.spec.hf._read import FAMILIES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
AutoConfig, AutoModelForCausalLM = transformers.AutoConfig, transformers.AutoModelForCausalLM

Config = dict[str, Any]
N_CONFIGS = 8
N_SLOW_CONFIGS = 40
PROMPT_LEN = 13
# Head sizes of which a quarter can be rotated.
QUARTERED = (8, 16, 24)


# --- random configs, in the keys of published files -------------------------------------------


def sizes(
    r: random.Random,
    *,
    has_groups: bool = True,
    own_head_dim: bool = False,
    widths: tuple[int, ...] = (8, 12, 20),
) -> Config:
    """The sizes that most families name alike; `own_head_dim` is unlike d/h more often than not."""
    n_heads = r.choice([2, 4, 6])
    config: Config = {
        "vocab_size": r.randint(40, 99),
        "hidden_size": n_heads * r.choice(widths),
        "intermediate_size": r.randint(5, 70),
        "num_hidden_layers": r.randint(1, 5),
        "num_attention_heads": n_heads,
        "max_position_embeddings": r.choice([64, 100]),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if has_groups:
        config["num_key_value_heads"] = r.choice([n for n in (1, 2, 3, 4, 6) if n_heads % n == 0])
    if own_head_dim:
        config["head_dim"] = r.choice([4, 6, 14, 16])
    return config


def some(r: random.Random, **choices: Any) -> Config:
    """Each key absent, or one of its values."""
    return {key: r.choice(values) for key, values in choices.items() if r.random() < 0.75}


def flags(r: random.Random, *names: str) -> Config:
    return some(r, **dict.fromkeys(names, (True, False)))


def experts(r: random.Random, key: str) -> Config:
    n_experts = r.choice([2, 3, 4, 8])
    return {key: n_experts, "num_experts_per_tok": r.randint(1, n_experts)}


def layer_types(r: random.Random, n_layers: int, local: str = "sliding_attention") -> Config:
    if r.random() < 0.5:
        return {}
    return {"layer_types": [r.choice([local, "full_attention"]) for _ in range(n_layers)]}


def classic_rope(r: random.Random) -> Config:
    config = some(r, rope_theta=(10_000.0, 500_000.0, 1e6))
    original = {"original_max_position_embeddings": 32}
    scaling = r.choice(
        [
            None,
            {"type": "linear", "factor": 4.0},
            {"rope_type": "dynamic", "factor": 2.0},
            {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0, **original},
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                **original,
            },
        ]
    )
    return config if scaling is None else config | {"rope_scaling": scaling}


def llama(r: random.Random) -> Config:
    return (
        sizes(r, own_head_dim=r.random() < 0.7)
        | classic_rope(r)
        | flags(r, "attention_bias", "mlp_bias", "tie_word_embeddings")
    )


def mistral(r: random.Random) -> Config:
    config = sizes(r, own_head_dim=r.random() < 0.7) | flags(r, "tie_word_embeddings")
    return config | some(r, sliding_window=(None, 3, 7, 20))


def mixtral(r: random.Random) -> Config:
    return mistral(r) | experts(r, "num_local_experts")


def smollm3(r: random.Random) -> Config:
    config = sizes(r) | flags(r, "attention_bias", "mlp_bias", "tie_word_embeddings")
    n_layers = config["num_hidden_layers"]
    config |= some(r, no_rope_layer_interval=(2, 3), use_sliding_window=(True, False))
    config |= {"sliding_window": r.choice([4, 9])}
    if r.random() < 0.5:
        config["no_rope_layers"] = [r.randint(0, 1) for _ in range(n_layers)]
    return config | layer_types(r, n_layers)


def granite(r: random.Random) -> Config:
    return (
        sizes(r)
        | classic_rope(r)
        | flags(r, "attention_bias", "mlp_bias", "tie_word_embeddings")
        | some(
            r,
            embedding_multiplier=(1.0, 12.0),
            residual_multiplier=(0.22,),
            attention_multiplier=(0.0078125,),
            logits_scaling=(8.0,),
        )
    )


def phi3(r: random.Random) -> Config:
    config = sizes(r) | flags(r, "tie_word_embeddings") | some(r, sliding_window=(None, 5, 30))
    config["original_max_position_embeddings"] = 32
    if r.random() < 0.5:
        pairs = config["hidden_size"] // config["num_attention_heads"] // 2
        config["rope_scaling"] = {
            "type": "longrope",
            "short_factor": [1.0 + i / 8 for i in range(pairs)],
            "long_factor": [2.0 + i for i in range(pairs)],
        }
    else:
        config |= some(r, partial_rotary_factor=(0.5, 1.0))
    return config


def stablelm(r: random.Random) -> Config:
    return (
        sizes(r, widths=QUARTERED)
        | flags(r, "use_qkv_bias", "qk_layernorm", "use_parallel_residual", "tie_word_embeddings")
        | some(r, partial_rotary_factor=(0.25, 0.5, 1.0))
    )


def qwen2(r: random.Random) -> Config:
    config = sizes(r) | classic_rope(r) | flags(r, "tie_word_embeddings", "use_sliding_window")
    config |= some(r, sliding_window=(4, 9), max_window_layers=(0, 1, 3))
    types = layer_types(r, config["num_hidden_layers"])
    return config | types | ({"use_sliding_window": True} if types else {})


def qwen3(r: random.Random) -> Config:
    head_dim = {"head_dim": r.choice([4, 6, 14, 16])} if r.random() < 0.8 else {}
    return qwen2(r) | flags(r, "attention_bias") | head_dim


def _sparse(r: random.Random, n_layers: int) -> Config:
    return experts(r, "num_experts") | some(
        r,
        decoder_sparse_step=(1, 2, 3),
        mlp_only_layers=([], [0], list(range(n_layers))),
        norm_topk_prob=(True, False),
    )


def qwen2_moe(r: random.Random) -> Config:
    config = qwen2(r) | flags(r, "qkv_bias")
    config |= {"moe_intermediate_size": r.randint(5, 30)}
    config |= {"shared_expert_intermediate_size": r.randint(5, 50)}
    return config | _sparse(r, config["num_hidden_layers"])


def qwen3_moe(r: random.Random) -> Config:
    config = sizes(r, own_head_dim=r.random() < 0.7)
    config |= flags(r, "attention_bias", "tie_word_embeddings", "use_sliding_window")
    config |= some(r, sliding_window=(4, 9))
    config |= {"moe_intermediate_size": r.randint(5, 30)}
    return config | _sparse(r, config["num_hidden_layers"])


def gemma(r: random.Random) -> Config:
    config = sizes(r, own_head_dim=r.random() < 0.8) | flags(r, "attention_bias")
    return config | some(r, hidden_act=("gelu", "gelu_pytorch_tanh"), rope_theta=(5e5,))


def gemma2(r: random.Random) -> Config:
    config = sizes(r, own_head_dim=r.random() < 0.8) | flags(r, "attention_bias")
    config |= some(
        r,
        sliding_window=(4, 9),
        query_pre_attn_scalar=(8, 16),
        final_logit_softcapping=(None, 20.0),
        attn_logit_softcapping=(None, 40.0),
        tie_word_embeddings=(True, False),
    )
    return config | layer_types(r, config["num_hidden_layers"])


def gemma3_text(r: random.Random) -> Config:
    config = gemma2(r)
    config |= some(
        r,
        sliding_window_pattern=(2, 3),
        rope_theta=(1e6, 2e6),
        rope_local_base_freq=(1e4, 2e4),
        rope_scaling=({"rope_type": "linear", "factor": 8.0},),
    )
    return config


def gpt2(r: random.Random) -> Config:
    n_heads = r.choice([1, 2, 4])
    return {
        "vocab_size": r.randint(40, 99),
        "n_embd": n_heads * r.choice([4, 6, 10]),
        "n_head": n_heads,
        "n_layer": r.randint(1, 4),
        "n_positions": r.randint(20, 60),
        "bos_token_id": 1,
        "eos_token_id": 2,
        **some(r, n_inner=(None, 7, 50)),
        **flags(r, "tie_word_embeddings", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
    }


def gpt_neox(r: random.Random) -> Config:
    return (
        sizes(r, has_groups=False, widths=QUARTERED)
        | flags(r, "attention_bias", "use_parallel_residual", "tie_word_embeddings")
        | some(r, rotary_pct=(0.25, 0.5, 1.0), rotary_emb_base=(10_000, 50_000))
    )


def gpt_oss(r: random.Random) -> Config:
    config = sizes(r, own_head_dim=r.random() < 0.8) | experts(r, "num_local_experts")
    config |= flags(r, "attention_bias", "tie_word_embeddings") | some(r, sliding_window=(4, 9))
    return config | layer_types(r, config["num_hidden_layers"])


def opt(r: random.Random) -> Config:
    config = sizes(r, has_groups=False)
    config["ffn_dim"] = config.pop("intermediate_size")
    return (
        config
        | flags(r, "enable_bias", "layer_norm_elementwise_affine", "do_layer_norm_before")
        | some(
            r, word_embed_proj_dim=(config["hidden_size"], 10), tie_word_embeddings=(True, False)
        )
    )


def bloom(r: random.Random) -> Config:
    config = sizes(r, has_groups=False) | flags(r, "tie_word_embeddings")
    return {
        "n_layer": config.pop("num_hidden_layers"),
        "n_head": config.pop("num_attention_heads"),
        **{k: v for k, v in config.items() if not k.startswith(("max_", "intermediate"))},
    }


def starcoder2(r: random.Random) -> Config:
    config = sizes(r) | flags(r, "use_bias", "tie_word_embeddings")
    return config | some(r, sliding_window=(None, 5, 30), rope_theta=(1e5,))


def olmo2(r: random.Random) -> Config:
    return sizes(r) | flags(r, "attention_bias", "tie_word_embeddings") | classic_rope(r)


def olmoe(r: random.Random) -> Config:
    config = sizes(r) | flags(r, "attention_bias", "tie_word_embeddings", "norm_topk_prob")
    return config | experts(r, "num_experts") | some(r, clip_qkv=(None, 8.0))


def cohere(r: random.Random) -> Config:
    config = sizes(r) | flags(r, "attention_bias", "use_qk_norm", "tie_word_embeddings")
    return config | some(r, logit_scale=(0.25,), rope_theta=(8e6,))


def _deepseek(r: random.Random) -> Config:
    config = sizes(r, has_groups=False)
    n_groups = r.choice([1, 2, 4])
    n_experts = n_groups * r.choice([2, 3])
    config |= {
        "num_key_value_heads": config["num_attention_heads"],
        # Even, for the reference rotates views of these as complex numbers.
        "kv_lora_rank": r.choice([6, 10, 20]),
        "q_lora_rank": r.choice([None, 7, 12]),
        "qk_rope_head_dim": r.choice([2, 4, 8]),
        "qk_nope_head_dim": r.choice([2, 6, 8]),
        "v_head_dim": r.randint(3, 9),
        "n_routed_experts": n_experts,
        "n_shared_experts": r.randint(1, 3),
        "num_experts_per_tok": r.randint(1, 2),
        "moe_intermediate_size": r.randint(5, 30),
        "first_k_dense_replace": r.randint(0, config["num_hidden_layers"]),
        "n_group": n_groups,
        "topk_group": r.randint(1, n_groups),
        "moe_layer_freq": 1,
    }
    config |= some(
        r,
        norm_topk_prob=(True, False),
        routed_scaling_factor=(1.0, 16.0),
        attention_bias=(True, False),
        tie_word_embeddings=(True, False),
        rope_scaling=(
            {
                "type": "yarn",
                "factor": 4.0,
                "mscale": 0.7,
                "mscale_all_dim": 0.7,
                "beta_fast": 32,
                "beta_slow": 1,
                "original_max_position_embeddings": 25,
            },
        ),
    )
    return config


def deepseek_v2(r: random.Random) -> Config:
    method = {"topk_method": r.choice(["greedy", "group_limited_greedy"])}
    return (
        _deepseek(r)
        | flags(r, "mlp_bias")
        | method
        | {"scoring_func": "softmax", "norm_topk_prob": False}
    )


def deepseek_v3(r: random.Random) -> Config:
    config = _deepseek(r) | flags(r, "rope_interleave")
    return config | {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}


def llama4_text(r: random.Random) -> Config:
    config = sizes(r, own_head_dim=r.random() < 0.8) | experts(r, "num_local_experts")
    n_layers = config["num_hidden_layers"]
    config["intermediate_size_mlp"] = r.randint(5, 70)
    config |= flags(r, "attention_bias", "use_qk_norm", "attn_temperature_tuning")
    config |= some(
        r,
        interleave_moe_layer_step=(1, 2, 3),
        no_rope_layer_interval=(2, 3),
        no_rope_layers=([], [r.randint(0, 1) for _ in range(n_layers)]),
        attention_chunk_size=(4, 9),
        tie_word_embeddings=(True, False),
        floor_scale=(4096,),
    )
    if r.random() < 0.25:
        config["moe_layers"] = r.choice([[], [0]])
    return config | layer_types(r, n_layers, "chunked_attention")


GENERATORS: dict[str, Callable[[random.Random], Config]] = {
    generate.__name__: generate
    for generate in (
        *(llama, mistral, mixtral, smollm3, granite, phi3, stablelm),
        *(qwen2, qwen3, qwen2_moe, qwen3_moe),
        *(gemma, gemma2, gemma3_text),
        *(gpt2, gpt_neox, gpt_oss, opt, bloom, starcoder2),
        *(olmo2, olmoe, cohere),
        *(deepseek_v2, deepseek_v3, llama4_text),
    )
}


# --- the reference ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """What `transformers` makes of a config."""

    written: Config
    total: int
    active: int
    cached: int


def reference(model_type: str, config: Config) -> Reference:
    """Build `config` on the meta device and on the CPU, and count."""
    built = AutoConfig.for_model(model_type, **config)
    with torch.device("meta"):
        on_meta = AutoModelForCausalLM.from_config(built)
    total = routed = 0
    for name, parameter in on_meta.named_parameters():
        total += parameter.numel()
        routed += parameter.numel() if ".experts." in name else 0
    unused = 0
    if routed:
        n_experts = next(
            p.shape[0] for name, p in on_meta.named_parameters() if ".experts." in name
        )
        assert routed % n_experts == 0
        unused = routed // n_experts * (n_experts - built.num_experts_per_tok)

    # The plain loop over experts: the grouped product wants widths in multiples of 16 bytes.
    options = {"experts_implementation": "eager"} if routed else {}
    model = AutoModelForCausalLM.from_config(built, attn_implementation="eager", **options).eval()
    with torch.no_grad():
        cache = model(torch.zeros(1, PROMPT_LEN, dtype=torch.long), use_cache=True).past_key_values
    cached = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    return Reference(written=built.to_dict(), total=total, active=total - unused, cached=cached)


def check(model_type: str, seed: int) -> None:
    config = GENERATORS[model_type](random.Random(f"{model_type} {seed}"))
    expected = reference(model_type, config)
    model = from_config({"model_type": model_type, **config})
    params = count_params(model)
    assert (params.total, params.active) == (expected.total, expected.active), config

    held = 0
    for layer in model.layers:
        for elements in layer_cache(layer, model.d_model):
            window = PROMPT_LEN if elements.window is None else elements.window - 1
            held += elements.per_token * min(PROMPT_LEN, window)
    assert held == expected.cached, config

    # The file that transformers writes today says the same as the classic one that it was given:
    # every default, rotary setting and layer pattern that the reader filled in is its own.
    assert from_config(expected.written) == model, config


@pytest.mark.parametrize("seed", range(N_CONFIGS))
@pytest.mark.parametrize("model_type", GENERATORS)
def test_counts_equal_the_reference(model_type: str, seed: int) -> None:
    check(model_type, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(N_CONFIGS, N_SLOW_CONFIGS))
@pytest.mark.parametrize("model_type", GENERATORS)
def test_counts_equal_the_reference_at_length(model_type: str, seed: int) -> None:
    check(model_type, seed)


@pytest.mark.parametrize("model_type", GENERATORS)
def test_text_config_leaves_out_its_types_defaults(model_type: str) -> None:
    # The one size that a type leaves open.
    said = {"num_experts_per_tok": 6} if model_type == "deepseek_v2" else {}
    built = AutoConfig.for_model(model_type, **said)
    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(built)
    composite = {"model_type": "some_vlm", "text_config": {"model_type": model_type, **said}}
    model = from_config(composite)
    total = sum(parameter.numel() for parameter in expected.parameters())
    assert count_params(model).total == total
    assert model.layers == from_config(built.to_dict()).layers


def test_every_family_is_covered() -> None:
    elsewhere = {"qwen_next", "mamba", "hybrid", "rwkv"}
    here = {name for file, names in FAMILIES.items() if file not in elsewhere for name in names}
    assert set(GENERATORS) == here
