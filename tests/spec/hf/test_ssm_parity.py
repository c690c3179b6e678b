"""State-space models and hybrids against transformers: parameters and caches, to the unit.

Configs are drawn at random, so that no family is right by luck of its published sizes. The
reference is built on the meta device for its parameters and, tiny, on the CPU for what its cache
really holds after a prefill.
"""

from __future__ import annotations

import contextlib
import json
import random
from dataclasses import dataclass
from typing import Any

import pytest

from worthit.cost.cache import CacheElements, layer_cache
from worthit.cost.params import count_params
from worthit.errors import SpecError
from worthit.spec.hf import from_config
from worthit.spec.load import load_preset
from worthit.spec.model import Attention, Mamba2, ModelSpec, MoE

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

N_CONFIGS = 8
N_CACHED = 3
BATCH, PROMPT = 2, 7


def _mamba(r: random.Random) -> dict[str, Any]:
    return {
        "expand": r.choice([1, 2, 3]),
        "state_size": r.choice([4, 8, 16]),
        "conv_kernel": r.choice([2, 3, 4]),
        "time_step_rank": r.choice(["auto", 3, 5]),
        "use_bias": r.random() < 0.5,
        "use_conv_bias": r.random() < 0.5,
        "layer_norm_epsilon": r.choice([1e-5, 1e-6]),
    }


def _falcon_mamba(r: random.Random) -> dict[str, Any]:
    return {**_mamba(r), "intermediate_size": r.choice([24, 40]), "expand": 16}


def _mamba2(r: random.Random) -> dict[str, Any]:
    n_heads, head_dim, expand = r.choice([4, 8]), r.choice([4, 8]), r.choice([1, 2])
    return {
        "num_heads": n_heads,
        "head_dim": head_dim,
        "expand": expand,
        "hidden_size": n_heads * head_dim // expand,
        "state_size": r.choice([4, 8]),
        "n_groups": r.choice([1, 2, 4]),
        "conv_kernel": r.choice([2, 4]),
        "chunk_size": r.choice([4, 8]),
        "use_bias": r.random() < 0.5,
        "use_conv_bias": r.random() < 0.5,
        "time_step_limit": r.choice([(0.0, float("inf")), (0.001, 0.1)]),
    }


def _heads(r: random.Random) -> dict[str, Any]:
    n_kv_heads = r.choice([1, 2])
    return {
        "num_attention_heads": n_kv_heads * r.choice([1, 2]) * 2,
        "num_key_value_heads": n_kv_heads,
        "max_position_embeddings": 64,
    }


def _jamba(r: random.Random) -> dict[str, Any]:
    period, every = r.choice([2, 3]), r.choice([1, 2])
    return {
        **_heads(r),
        "num_hidden_layers": 4,
        "attn_layer_period": period,
        "attn_layer_offset": r.randrange(period),
        "expert_layer_period": every,
        "expert_layer_offset": r.randrange(every),
        "num_experts": r.choice([1, 4, 6]),
        "num_experts_per_tok": 1,
        "mamba_d_state": r.choice([4, 8]),
        "mamba_d_conv": r.choice([2, 4]),
        "mamba_expand": r.choice([1, 2]),
        "mamba_dt_rank": r.choice(["auto", 3]),
        "mamba_conv_bias": r.random() < 0.5,
        "mamba_proj_bias": r.random() < 0.5,
    }


def _mamba2_inside(r: random.Random) -> dict[str, Any]:
    return {
        **_heads(r),
        "mamba_n_heads": r.choice([4, 8]),
        "mamba_d_head": "auto",
        "mamba_n_groups": r.choice([1, 2]),
        "mamba_d_state": r.choice([4, 8]),
        "mamba_d_conv": r.choice([2, 4]),
        "mamba_expand": r.choice([1, 2]),
        "mamba_chunk_size": 4,
        "mamba_conv_bias": r.random() < 0.5,
        "mamba_proj_bias": r.random() < 0.5,
        "attention_bias": r.random() < 0.5,
    }


def _bamba(r: random.Random) -> dict[str, Any]:
    return {
        **_mamba2_inside(r),
        "num_hidden_layers": 4,
        "attn_layer_indices": sorted(r.sample(range(4), r.choice([1, 2]))),
        "mlp_bias": r.random() < 0.5,
    }


def _granitemoehybrid(r: random.Random) -> dict[str, Any]:
    kinds = ["mamba", "attention"]
    n_experts = r.choice([0, 4, 6])
    return {
        **_mamba2_inside(r),
        "num_hidden_layers": 4,
        "layer_types": [*kinds, *r.choices(kinds, k=2)],
        "num_local_experts": n_experts,
        "num_experts_per_tok": 2 if n_experts else 0,
        "shared_intermediate_size": r.choice([24, 40]),
        "position_embedding_type": r.choice(["nope", "rope", None]),
        "embedding_multiplier": 12.0,
        "logits_scaling": 8.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.125,
    }


def _falcon_h1(r: random.Random) -> dict[str, Any]:
    return {
        **_mamba2_inside(r),
        "mamba_d_ssm": r.choice([None, 48, 64]),
        "head_dim": r.choice([4, 12]),
        "projectors_bias": r.random() < 0.5,
        "mlp_bias": r.random() < 0.5,
        "mamba_rms_norm": r.random() < 0.5,
        "mamba_norm_before_gate": r.random() < 0.5,
        "mlp_multipliers": [0.9, 0.3],
        "ssm_multipliers": [0.5, 0.25, 0.2, 0.1, 0.7],
        "key_multiplier": 0.4,
        "lm_head_multiplier": 0.05,
    }


def _nemotron_h(r: random.Random) -> dict[str, Any]:
    n_groups = r.choice([1, 2])
    return {
        **_heads(r),
        "hybrid_override_pattern": "".join(["M", "*", *r.choices("M*-E", k=4)]),
        "head_dim": r.choice([4, 12]),
        "mamba_num_heads": r.choice([4, 8]),
        "mamba_head_dim": r.choice([4, 8]),
        "ssm_state_size": r.choice([4, 8]),
        "n_groups": r.choice([1, 2, 4]),
        "conv_kernel": r.choice([2, 4]),
        "chunk_size": 4,
        "use_bias": r.random() < 0.5,
        "use_conv_bias": r.random() < 0.5,
        "mlp_bias": r.random() < 0.5,
        "n_routed_experts": 8,
        "num_experts_per_tok": r.choice([2, 3]),
        "moe_intermediate_size": r.choice([12, 20]),
        "moe_shared_expert_intermediate_size": r.choice([12, 28]),
        "moe_latent_size": r.choice([None, 16]),
        "n_group": n_groups,
        "topk_group": r.randint(1, n_groups),
    }


def _rwkv(r: random.Random) -> dict[str, Any]:
    return {
        "hidden_size": (width := r.choice([16, 32])),
        "attention_hidden_size": r.choice([None, width]),
        "intermediate_size": r.choice([None, 40, 64]),
        "context_length": r.choice([64, 128]),
        "rescale_every": r.choice([0, 6]),
    }


def _qwen3_next(r: random.Random) -> dict[str, Any]:
    n_key_heads = r.choice([1, 2])
    kinds = ["linear_attention", "full_attention"]
    return {
        **_heads(r),
        "num_hidden_layers": 4,
        "head_dim": r.choice([8, 16]),
        "layer_types": r.choice([None, [*kinds, *r.choices(kinds, k=2)]]),
        "linear_num_key_heads": n_key_heads,
        "linear_num_value_heads": n_key_heads * r.choice([1, 2]),
        "linear_key_head_dim": r.choice([4, 8]),
        "linear_value_head_dim": r.choice([4, 8]),
        "linear_conv_kernel_dim": r.choice([2, 4]),
        "attention_bias": r.random() < 0.5,
        "decoder_sparse_step": r.choice([1, 2]),
        "mlp_only_layers": r.choice([[], [1], [0, 3]]),
        "num_experts": r.choice([4, 6]),
        "num_experts_per_tok": 2,
        "moe_intermediate_size": r.choice([12, 20]),
        "shared_expert_intermediate_size": r.choice([12, 28]),
    }


FAMILIES = {
    "mamba": _mamba,
    "falcon_mamba": _falcon_mamba,
    "mamba2": _mamba2,
    "jamba": _jamba,
    "bamba": _bamba,
    "granitemoehybrid": _granitemoehybrid,
    "falcon_h1": _falcon_h1,
    "nemotron_h": _nemotron_h,
    "rwkv": _rwkv,
    "qwen3_next": _qwen3_next,
}


def draw(model_type: str, seed: int) -> dict[str, Any]:
    """A random config as a file would hold it."""
    r = random.Random(f"{model_type}-{seed}")
    common: dict[str, Any] = {
        "hidden_size": r.choice([32, 48]),
        "vocab_size": r.choice([61, 97]),
        "num_hidden_layers": r.choice([2, 3]),
        "intermediate_size": r.choice([40, 64]),
        "tie_word_embeddings": r.random() < 0.5,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if model_type in ("mamba", "mamba2"):
        del common["intermediate_size"]
    if model_type == "nemotron_h":
        del common["num_hidden_layers"]
    config = {"model_type": model_type, **common, **FAMILIES[model_type](r)}
    # Files leave out what equals the type's default: switches and small numbers, at random.
    optional = [k for k, v in config.items() if v is None or isinstance(v, bool | float)]
    for key in r.sample(optional, k=len(optional) // 4):
        del config[key]
    return config


def reference(config: dict[str, Any], device: str) -> Any:
    """The model that transformers builds from `config`."""
    options = {k: v for k, v in config.items() if k != "model_type"}
    built = transformers.AutoConfig.for_model(config["model_type"], **options)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(built, attn_implementation="eager")


def active_params(model: Any, spec: ModelSpec) -> int:
    """Parameters that one token uses: all, but only the chosen share of the routed experts."""
    moe = next((ffn for ffn in spec.ffns if isinstance(ffn, MoE)), None)
    total = 0
    for name, tensor in model.named_parameters():
        if moe is not None and ".experts." in name:
            total += tensor.numel() // moe.n_experts * moe.n_experts_per_token
        else:
            total += tensor.numel()
    return total


CASES = [(model_type, seed) for model_type in FAMILIES for seed in range(N_CONFIGS)]


@pytest.mark.parametrize(("model_type", "seed"), CASES)
def test_parameters_equal_those_of_the_reference(model_type: str, seed: int) -> None:
    config = draw(model_type, seed)
    model = reference(config, "meta")
    spec = from_config(config)
    counted = count_params(spec)
    assert counted.total == sum(p.numel() for p in model.parameters())
    assert counted.active == active_params(model, spec)
    # The file that transformers itself writes of this model says the same.
    saved = json.loads(model.config.to_json_string(use_diff=False))
    assert from_config(saved) == spec


def held(cache: Any) -> dict[str, int]:
    """Elements that a transformers cache keeps of one sequence, by what they are."""
    kept = {"tokens": 0, "conv": 0, "state": 0}
    for layer in cache.layers:
        for name in ("keys", "values"):
            tensor = getattr(layer, name, None)
            kept["tokens"] += 0 if tensor is None else tensor.numel()
        for name, kind in (("conv_states", "conv"), ("recurrent_states", "state")):
            tensors = getattr(layer, name, None) or {}
            kept[kind] += sum(t.numel() for t in tensors.values() if t is not None)
    return {kind: n // BATCH for kind, n in kept.items()}


def predicted(spec: ModelSpec) -> list[CacheElements]:
    return [kept for layer in spec.layers for kept in layer_cache(layer, spec.d_model)]


CACHED = [
    (model_type, seed)
    for model_type in FAMILIES
    if model_type != "rwkv"
    for seed in range(N_CACHED)
]


@pytest.mark.parametrize(("model_type", "seed"), CACHED)
def test_cache_holds_what_the_reference_keeps_after_a_prefill(model_type: str, seed: int) -> None:
    config = draw(model_type, seed)
    model = reference(config, "cpu").eval()
    with torch.no_grad():
        out = model(torch.ones(BATCH, PROMPT, dtype=torch.long), use_cache=True)
    kept = held(getattr(out, "cache_params", None) or out.past_key_values)
    elements = predicted(from_config(config))
    assert sum(e.per_token for e in elements) * PROMPT == kept["tokens"]
    assert sum(e.fixed for e in elements) == kept["state"]
    # Convention: the last d_conv inputs are kept, as transformers and the Mamba kernels do. The
    # oldest of them is not needed for the next token, so an implementation may keep d_conv - 1.
    assert sum(e.conv for e in elements) == kept["conv"]


@pytest.mark.parametrize("seed", range(N_CACHED))
def test_rwkv_keeps_five_vectors_a_layer(seed: int) -> None:
    config = draw("rwkv", seed)
    model = reference(config, "cpu").eval()
    with torch.no_grad():
        out = model(torch.ones(BATCH, PROMPT, dtype=torch.long), use_cache=True)
    elements = predicted(from_config(config))
    fixed, conv = sum(e.fixed for e in elements), sum(e.conv for e in elements)
    assert fixed + conv == sum(state.numel() for state in out.state) // BATCH
    # Two of the five are the previous token's inputs of the two halves of the layer.
    assert conv == sum(state.numel() for state in out.state[:2]) // BATCH


@dataclass(frozen=True)
class Golden:
    """Published or counted elsewhere, for the configs that ship as presets."""

    total: int
    state: int = 0
    kv_bytes_per_token: int = 0
    active: int | None = None


GOLDEN = {
    # Counts of the reference models, without weights; states are the SSM states alone.
    "mamba-130m": Golden(129_135_360, state=589_824),
    "mamba2-2.7b": Golden(2_702_599_680, state=41_943_040),
    "rwkv-4-14b": Golden(14_148_597_760, state=3 * 40 * 5120),
    # The Jamba 1.5 report, arXiv:2408.12570, table 1, has 4 GiB of keys and values at 256K tokens.
    "jamba-v0.1": Golden(
        51_570_323_328, 28 * 8192 * 16, kv_bytes_per_token=16_384, active=12_110_311_296
    ),
    "granite-4.0-h-small": Golden(
        32_207_337_984, 37_748_736, kv_bytes_per_token=16_384, active=8_803_121_664
    ),
    # Totals of the tensors, as the hub shows them.
    "falcon-h1-0.5b": Golden(
        521_411_104, 36 * 24 * 64 * 128, kv_bytes_per_token=2 * 2 * 64 * 36 * 2
    ),
    "nemotron-nano-9b-v2": Golden(8_888_227_328, 27 * 128 * 80 * 128, kv_bytes_per_token=16_384),
    "qwen3-next-80b-a3b": Golden(
        79_674_391_296, 36 * 32 * 128 * 128, kv_bytes_per_token=12 * 2 * 2 * 256 * 2
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    golden, spec = GOLDEN[name], load_preset(name)
    elements = predicted(spec)
    counted = count_params(spec)
    assert counted.total == golden.total
    assert sum(e.fixed for e in elements) == golden.state
    assert sum(e.per_token for e in elements) * 2 == golden.kv_bytes_per_token
    if golden.active is not None:
        assert counted.active == golden.active


def test_facts_of_the_computation_reach_the_spec() -> None:
    config = {
        **draw("falcon_h1", 0),
        "ssm_multipliers": [0.5, 0.25, 0.2, 0.1, 0.7],
        "mlp_multipliers": [0.9, 0.3],
        "key_multiplier": 0.4,
        "lm_head_multiplier": 0.05,
        "time_step_limit": [0.001, 0.1],
    }
    spec = from_config(config)
    attention, mamba = spec.layers[0].mixers
    assert isinstance(attention, Attention)
    assert isinstance(mamba, Mamba2)
    assert attention.key_scale == 0.4
    assert mamba.part_scales == (0.5, 0.25, 0.2, 0.1, 0.7)
    assert (mamba.dt_min, mamba.dt_max) == (0.001, 0.1)
    assert spec.ffns[0].gate_scale == 0.9  # type: ignore[union-attr]  # a plain feed-forward
    assert spec.logit_scale == 0.05


# Keys of published files that transformers does not read, or that change only how it runs.
LEFTOVERS: dict[str, dict[str, Any]] = {
    "mamba": {
        "d_inner": None,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
        "rms_norm": True,
        "ssm_cfg": {"dt_rank": 48},
        "time_step_init_scheme": "random",
        "residual_in_fp32": True,
    },
    "mamba2": {"norm_before_gate": True, "rms_norm": True, "time_step_rank": 256},
    "falcon_mamba": {"use_falcon_mambapy": False, "time_step_scale": 1.0},
    "jamba": {
        "calc_logits_for_entire_prompt": True,
        "mamba_inner_layernorms": True,
        "n_ctx": 262144,
        "use_mamba_kernels": True,
        "num_logits_to_keep": 1,
    },
    "bamba": {"z_loss_coefficient": 1e-4, "num_logits_to_keep": 1, "use_mamba_kernels": True},
    "granitemoehybrid": {"init_method": "mup", "normalization_function": "rmsnorm"},
    "falcon_h1": {
        "mamba_use_mlp": True,
        "mlp_expansion_factor": 8,
        "time_step_min": 0.001,
        "time_step_max": 0.1,
        "time_step_floor": 1e-4,
        "attn_layer_indices": None,
    },
    "nemotron_h": {
        "attention_head_dim": 128,
        "hidden_dropout": 0.0,
        "rescale_prenorm_residual": True,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "time_step_limit": [0.0, {"__float__": "Infinity"}],
        "time_step_rank": 512,
    },
    "rwkv": {"rescale_every": 6, "max_position_embeddings": 64},
    "qwen3_next": {"use_sliding_window": False, "output_router_logits": False},
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_published_files_also_hold_changes_nothing(model_type: str) -> None:
    config = draw(model_type, 0)
    assert from_config({**LEFTOVERS[model_type], **config}) == from_config(config)


def test_the_states_format_is_read_where_a_file_says_it() -> None:
    config = draw("nemotron_h", 0)
    assert from_config(config).precision.state == "fp32"
    kept = from_config({**config, "mamba_ssm_cache_dtype": "bfloat16"})
    assert kept.precision.state == "bf16"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("mamba2", {"num_heads": 7}, r"n_groups: must divide num_heads|num_heads \* head_dim must be"),
    ("mamba2", {"time_step_limit": [0.1]}, "time_step_limit: must be two numbers"),
    ("jamba", {"mamba_inner_layernorms": False}, "mamba_inner_layernorms: understood here: True"),
    ("jamba", {"attn_layer_offset": 8}, "attn_layer_offset: must be at most attn_layer_period"),
    ("bamba", {"attn_layer_indices": [99]}, "attn_layer_indices: must be below num_hidden_layers"),
    ("bamba", {"attn_rotary_emb": 2}, "attn_rotary_emb: understood here"),
    ("granitemoehybrid", {"layer_types": ["mamba", "rnn"] * 2}, "layer_types: .* got rnn"),
    ("granitemoehybrid", {"position_embedding_type": "alibi"}, "position_embedding_type: "),
    ("falcon_h1", {"ssm_multipliers": [1.0]}, "ssm_multipliers: must be 5 numbers"),
    ("falcon_h1", {"mamba_d_head": 5}, "mamba_n_heads \\* mamba_d_head must be"),
    ("nemotron_h", {"hybrid_override_pattern": "MXM"}, "hybrid_override_pattern: .* got X"),
    ("nemotron_h", {"hybrid_override_pattern": ""}, "must name each layer's kind"),
    ("nemotron_h", {"num_hidden_layers": 3}, "num_hidden_layers: must be the length"),
    ("rwkv", {"attention_hidden_size": -1}, "attention_hidden_size: must be a positive whole"),
    ("qwen3_next", {"layer_types": ["mamba"] * 4}, "layer_types: .* got mamba"),
    ("qwen3_next", {"use_sliding_window": True}, "use_sliding_window: understood here: False"),
    ("mamba", {"n_ssm_branches": 2}, "n_ssm_branches: not understood"),
]


@pytest.mark.parametrize(("model_type", "change", "message"), REFUSED)
def test_what_would_change_the_model_is_refused(
    model_type: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        from_config({**draw(model_type, 0), **change})


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_missing_size_is_an_error_and_not_a_crash(model_type: str) -> None:
    config = draw(model_type, 1)
    for key in config.keys() - {"model_type"}:
        rest = {k: v for k, v in config.items() if k != key}
        with contextlib.suppress(SpecError):  # a key without which the default is meant is fine
            from_config(rest)
    with pytest.raises(SpecError, match="vocab_size: missing"):
        from_config({"model_type": model_type, "hybrid_override_pattern": "M"})
