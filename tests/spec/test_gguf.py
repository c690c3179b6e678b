"""GGUF headers: tiny files written with the `gguf` package, read with ours.

For each architecture the tensors are those that transformers' reference model has, under the
names that `gguf` maps them to, and the metadata what llama.cpp's converter writes. The model read
must be the one that the config describes.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worthit.cost.params import count_params
from worthit.errors import SpecError, UnknownName
from worthit.spec._gguf_header import TYPES, TensorInfo, read_header
from worthit.spec.codec import to_json
from worthit.spec.formats import FORMATS
from worthit.spec.gguf import _precision, read_gguf, read_model
from worthit.spec.hf import from_config
from worthit.spec.model import Mamba2, ModelSpec

gguf = pytest.importorskip("gguf")

Config = dict[str, Any]
Meta = dict[str, Any]

# Keys of configs, under any name, to metadata, as the converter's common part does.
COMMON = {
    "max_position_embeddings": "context_length",
    "n_positions": "context_length",
    "seq_length": "context_length",
    "hidden_size": "embedding_length",
    "n_embd": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "n_head": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rope_theta": "rope.freq_base",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
    "norm_epsilon": "attention.layer_norm_epsilon",
    "num_local_experts": "expert_count",
    "num_experts": "expert_count",
    "n_routed_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
    "head_dim": "attention.key_length",
}
BASE: Config = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LAYERNORM: Config = {k: v for k, v in BASE.items() if k != "rms_norm_eps"} | {
    "layer_norm_eps": 1e-5
}
MAMBA2: Config = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 4,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 256,
}
MAMBA2_META: Meta = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 4,
    "ssm.group_count": 2,
    "ssm.inner_size": 64,
    "ssm.time_step_rank": 8,
}
MOE: Config = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
MLA: Config = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    **MOE,
}
MLA_META: Meta = {
    "attention.q_lora_rank": 16,
    "attention.kv_lora_rank": 16,
    "attention.head_count_kv": 1,
    "attention.key_length": 20,
    "attention.value_length": 16,
    "attention.key_length_mla": 12,
    "attention.value_length_mla": 8,
    "rope.dimension_count": 4,
    "leading_dense_block_count": 1,
    "expert_feed_forward_length": 12,
    "expert_shared_count": 1,
    "expert_weights_scale": 2.5,
}

# Architecture: its config beside the model type, and metadata beyond the common ones.
ARCHITECTURES: dict[str, tuple[str, Config, Meta]] = {
    "llama": ("llama", {**BASE, "rope_theta": 5e5, "attention_bias": True}, {}),
    "llama mixture": (
        "mixtral",
        {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        {"rope.dimension_count": 8},
    ),
    "qwen2": ("qwen2", {**BASE, "tie_word_embeddings": True}, {}),
    "qwen3": ("qwen3", {**BASE, "head_dim": 12}, {}),
    "qwen2moe": (
        "qwen2_moe",
        {**BASE, **MOE, "num_experts": 4, "shared_expert_intermediate_size": 20},
        {"expert_feed_forward_length": 12, "expert_shared_feed_forward_length": 20},
    ),
    "qwen3moe": (
        "qwen3_moe",
        {**BASE, **MOE, "num_experts": 4, "head_dim": 12, "norm_topk_prob": True},
        {"expert_feed_forward_length": 12},
    ),
    "qwen3next": (
        "qwen3_next",
        {
            **BASE,
            **MOE,
            "num_experts": 4,
            "head_dim": 8,
            "shared_expert_intermediate_size": 20,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "partial_rotary_factor": 0.5,
        },
        {
            "expert_feed_forward_length": 12,
            "expert_shared_feed_forward_length": 20,
            "rope.dimension_count": 4,
            "ssm.conv_kernel": 4,
            "ssm.state_size": 8,
            "ssm.group_count": 2,
            "ssm.time_step_rank": 4,
            "ssm.inner_size": 32,
        },
    ),
    "gemma": ("gemma", {**BASE, "head_dim": 12, "tie_word_embeddings": True}, {}),
    "gemma2": (
        "gemma2",
        {
            **BASE,
            "head_dim": 12,
            "sliding_window": 16,
            "query_pre_attn_scalar": 12,
            "tie_word_embeddings": True,
        },
        {
            "attention.sliding_window": 16,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            **BASE,
            "num_hidden_layers": 7,
            "head_dim": 12,
            "rope_theta": 1e6,
            "sliding_window": 16,
            "query_pre_attn_scalar": 12,
            "tie_word_embeddings": True,
        },
        {"attention.sliding_window": 16, "rope.freq_base_swa": 10_000.0},
    ),
    "phi3": (
        "phi3",
        {**BASE, "sliding_window": 32},
        {"attention.sliding_window": 32, "rope.dimension_count": 8},
    ),
    "gpt2": (
        "gpt2",
        {
            "vocab_size": 40,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "layer_norm_epsilon": 1e-5,
        },
        {"feed_forward_length": 128},
    ),
    "gptneox": (
        "gpt_neox",
        {
            **{k: v for k, v in LAYERNORM.items() if k != "num_key_value_heads"},
            "hidden_act": "gelu",
            "partial_rotary_factor": 0.25,
        },
        {"use_parallel_residual": True, "rope.dimension_count": 2},
    ),
    "starcoder2": (
        "starcoder2",
        {**{k: v for k, v in LAYERNORM.items() if k != "layer_norm_eps"}, "norm_epsilon": 1e-5}
        | {"sliding_window": None, "tie_word_embeddings": True},
        {},
    ),
    "stablelm": (
        "stablelm",
        {**LAYERNORM, "use_qkv_bias": True, "partial_rotary_factor": 0.25},
        {"use_parallel_residual": True, "rope.dimension_count": 2},
    ),
    "olmo2": ("olmo2", BASE, {}),
    "olmoe": ("olmoe", {**BASE, "num_experts": 4, "num_experts_per_tok": 2}, {}),
    "deepseek2": (
        "deepseek_v3",
        {**BASE, **MLA, "n_group": 2, "topk_group": 1},
        {**MLA_META, "expert_gating_func": 2, "expert_weights_norm": True},
    ),
    "deepseek2, version 2": (
        "deepseek_v2",
        {**BASE, **MLA, "q_lora_rank": None, "topk_method": "greedy"},
        {k: v for k, v in MLA_META.items() if k != "attention.q_lora_rank"},
    ),
    "mamba": (
        "mamba",
        {
            "vocab_size": 40,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 4,
            "time_step_rank": 3,
            "layer_norm_epsilon": 1e-5,
        },
        {
            "context_length": 2**20,
            "attention.head_count": 0,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 64,
            "ssm.state_size": 4,
            "ssm.time_step_rank": 3,
            "ssm.dt_b_c_rms": False,
        },
    ),
    "mamba, Falcon's": (
        "falcon_mamba",
        {
            "vocab_size": 40,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 4,
            "time_step_rank": 3,
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": False,
        },
        {
            "context_length": 2**20,
            "attention.head_count": 0,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 64,
            "ssm.state_size": 4,
            "ssm.time_step_rank": 3,
            "ssm.dt_b_c_rms": True,
        },
    ),
    "mamba2": (
        "mamba2",
        {
            "vocab_size": 40,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 4,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 2,
            "layer_norm_epsilon": 1e-5,
        },
        {
            "context_length": 2**20,
            "attention.head_count": 0,
            "attention.layer_norm_rms_epsilon": 1e-5,
            **MAMBA2_META,
        },
    ),
    "jamba": (
        "jamba",
        {
            **{k: v for k, v in BASE.items() if k != "rope_theta"},
            "attn_layer_period": 4,
            "attn_layer_offset": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 4,
            "mamba_dt_rank": 3,
        },
        {
            "attention.head_count_kv": [0, 0, 2, 0],
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 64,
            "ssm.state_size": 4,
            "ssm.time_step_rank": 3,
        },
    ),
    "granite": (
        "granite",
        {
            **BASE,
            "attention_multiplier": 0.25,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 8.0,
        },
        {
            "attention.scale": 0.25,
            "embedding_scale": 12.0,
            "residual_scale": 0.5,
            "logit_scale": 8.0,
        },
    ),
    "granitehybrid": (
        "granitemoehybrid",
        {
            **{k: v for k, v in BASE.items() if k != "rope_theta"},
            **MAMBA2,
            "layer_types": ["mamba", "attention", "mamba", "mamba"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 20,
            "attention_multiplier": 0.25,
        },
        {
            **MAMBA2_META,
            "attention.head_count_kv": [0, 2, 0, 0],
            "attention.scale": 0.25,
            "expert_shared_feed_forward_length": 20,
            "rope.scaling.finetuned": False,
        },
    ),
    "falcon-h1": (
        "falcon_h1",
        {**BASE, **MAMBA2, "mamba_d_ssm": 64, "head_dim": 12, "mamba_rms_norm": True}
        | {"mamba_norm_before_gate": False},
        {**MAMBA2_META, "attention.value_length": 12},
    ),
    "nemotron_h": (
        "nemotron_h",
        {
            **{k: v for k, v in BASE.items() if k not in ("rms_norm_eps", "rope_theta")},
            "hybrid_override_pattern": "M-*-",
            "head_dim": 12,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 4,
            "n_groups": 2,
        }
        | {"layer_norm_epsilon": 1e-5},
        {
            **MAMBA2_META,
            "attention.head_count_kv": [0, 0, 2, 0],
            "attention.layer_norm_rms_epsilon": 1e-5,
            "feed_forward_length": [0, 48, 0, 48],
        },
    ),
    "nemotron_h_moe": (
        "nemotron_h",
        {
            **{k: v for k, v in BASE.items() if k not in ("rms_norm_eps", "rope_theta")},
            **MOE,
            "hybrid_override_pattern": "ME*E",
            "head_dim": 12,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 4,
            "n_groups": 2,
            "n_routed_experts": 8,
            "moe_shared_expert_intermediate_size": 20,
            "moe_latent_size": 16,
            "routed_scaling_factor": 2.5,
            "n_group": 2,
            "topk_group": 1,
            "layer_norm_epsilon": 1e-5,
        },
        {
            **MAMBA2_META,
            "attention.head_count_kv": [0, 0, 2, 0],
            "attention.layer_norm_rms_epsilon": 1e-5,
            "feed_forward_length": [0, 12, 0, 12],
            "expert_feed_forward_length": 12,
            "expert_shared_feed_forward_length": 20,
            "expert_shared_count": 1,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "moe_latent_size": 16,
        },
    ),
    "gpt-oss": (
        "gpt_oss",
        {
            **BASE,
            "head_dim": 12,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "original_max_position_embeddings": 4,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
            },
        },
        {
            "attention.sliding_window": 16,
            "expert_feed_forward_length": 48,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4,
        },
    ),
    "bloom": (
        "bloom",
        {
            "vocab_size": 40,
            "hidden_size": 32,
            "n_layer": 2,
            "n_head": 4,
            "seq_length": 64,
            "layer_norm_epsilon": 1e-5,
        },
        {"feed_forward_length": 128},
    ),
    "command-r": (
        "cohere",
        {**LAYERNORM, "tie_word_embeddings": True, "logit_scale": 0.0625},
        {"logit_scale": 0.0625},
    ),
    "smollm3": ("smollm3", {**BASE, "tie_word_embeddings": True}, {}),
}


def reference(model_type: str, config: Config) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    options = {k: v for k, v in config.items() if k != "rope_scaling"}
    built = transformers.AutoConfig.for_model(model_type, **options)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(built)


def tensors_of(model: Any, arch: str, n_layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every parameter under the name and in the shape that the converter gives it."""
    number = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names = gguf.get_tensor_name_map(number, n_layers)
    for full, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        for name, part in _unfused(full, shape, arch):
            mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert mapped is not None, name
            yield mapped, part


Named = tuple[str, tuple[int, ...]]


def _unfused(name: str, shape: tuple[int, ...], arch: str) -> list[Named]:
    """Names and shapes of older transformers, which the converter knows."""
    is_transposed = arch == "gpt-oss"
    if arch == "bloom":
        name = name.removeprefix("transformer.")
    is_nemotron = ".mixer." in name or ".norm_f." in name
    if is_nemotron or name in ("model.embeddings.weight",) or re_layer_norm(name):
        name = name.replace("model.", "backbone.", 1)
    name = name.replace(".dt_bias", ".dt_proj.bias")
    if ".conv1d.weight" in name:
        shape = (shape[0], shape[2])
    base = name.rsplit(".", 1)[0] if name.endswith((".weight", ".bias")) else name
    if base.endswith(("experts.gate_up_proj", "experts.gate_up_proj_bias")):
        return _experts(name, shape, is_transposed=is_transposed)
    if ".experts." in name:
        is_bias = name.endswith("_bias")
        stem, part = name.split(".experts.")
        for old in ("block_sparse_moe", "feed_forward", "mixer"):
            stem = stem.replace(old, "mlp").replace("backbone", "model")
        if is_transposed and not is_bias:
            shape = (shape[0], *shape[:0:-1])
        suffix = "bias" if is_bias else "weight"
        return [(f"{stem}.experts.{part.removesuffix('_bias')}.{suffix}", shape)]
    if "shared_mlp.input_linear" in name:
        half = (shape[0] // 2, shape[1])
        stem = name.split(".shared_mlp.")[0]
        return [(f"{stem}.mlp.shared_experts.{part}_proj.weight", half) for part in ("gate", "up")]
    if "shared_mlp.output_linear" in name:
        return [(name.split(".shared_mlp.")[0] + ".mlp.shared_experts.down_proj.weight", shape)]
    if name.endswith("block_sparse_moe.router.weight"):
        return [(name.replace("router", "router.layer"), shape)]
    return [(name, shape)]


def re_layer_norm(name: str) -> bool:
    """Nemotron-H's one norm a layer."""
    parts = name.split(".")
    return len(parts) == 5 and parts[1] == "layers" and parts[3:] == ["norm", "weight"]


def _experts(name: str, shape: tuple[int, ...], *, is_transposed: bool) -> list[Named]:
    is_bias = name.endswith("_bias")
    stem = name.split(".experts.")[0].replace("block_sparse_moe", "mlp")
    stem = stem.replace("feed_forward", "mlp")
    half = list(shape)
    half[-1 if is_bias or is_transposed else 1] //= 2
    if is_transposed and not is_bias:  # gpt-oss holds its experts the other way round
        half[1:] = half[:0:-1]
    suffix = "bias" if is_bias else "weight"
    return [(f"{stem}.experts.{part}_proj.{suffix}", tuple(half)) for part in ("gate", "up")]


def metadata_of(config: Config, extra: Meta) -> Meta:
    meta: Meta = {}
    for key, value in config.items():
        if key in COMMON and value is not None:
            meta[COMMON[key]] = value
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    if layers is not None:
        meta["block_count"] = layers
    return {**meta, **extra}


def write(path: Path, arch: str, meta: Meta, tensors: dict[str, np.ndarray], **raw: Any) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    for key, value in meta.items():
        full = key if key.startswith(("general.", "tokenizer.", "split.")) else f"{arch}.{key}"
        if isinstance(value, bool):
            writer.add_bool(full, value)
        elif isinstance(value, int):
            writer.add_uint32(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        elif isinstance(value, str):
            writer.add_string(full, value)
        else:
            writer.add_array(full, value)
    for name, data in tensors.items():
        kind = raw.get("types", {}).get(name)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def written(kind: str, folder: Path) -> tuple[Path, Config]:
    """The file of one entry of ARCHITECTURES, and its whole config."""
    model_type, config, extra = ARCHITECTURES[kind]
    arch = kind.split()[0].rstrip(",")
    meta = metadata_of(config, extra)
    model = reference(model_type, config)
    tensors = {
        name: np.zeros(shape, np.float16 if len(shape) > 1 else np.float32)
        for name, shape in tensors_of(model, arch, meta["block_count"])
    }
    path = write(folder / f"{model_type}.gguf", arch, meta, tensors)
    return path, {"model_type": model_type, **config}


def comparable(spec: ModelSpec) -> ModelSpec:
    """Without what a GGUF file does not say."""

    def mixer(m: Any) -> Any:
        return replace(m, chunk=256) if isinstance(m, Mamba2) else m

    return replace(
        spec.map_mixers(mixer), name="", source="", model_type="", precision=type(spec.precision)()
    )


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_file_reads_as_the_model_it_was_converted_from(kind: str, tmp_path: Path) -> None:
    path, config = written(kind, tmp_path)
    file = read_gguf(path)
    assert file.warnings == ()
    expected = from_config(config)
    assert file.n_params == count_params(expected).total
    assert to_json(comparable(file.model)) == to_json(comparable(expected))
    assert file.model.precision.weights == "fp16"


ODD = ("text", "", [], [1], ["a"], -1, 0, 1, 2**40, 1.5, float("nan"), float("inf"), True)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_odd_metadata_is_an_error_and_not_a_crash(kind: str, tmp_path: Path) -> None:
    path, _ = written(kind, tmp_path)
    header = read_header(path)
    keys = [key for key in header.metadata if not key.startswith("general.")]
    for key, value in itertools.product(keys, ODD):
        changed = replace(header, metadata={**header.metadata, key: value})
        # A size that still fits is another model, and not an error.
        with contextlib.suppress(SpecError):
            read_model(changed, path)
    for key in keys:
        rest = {k: v for k, v in header.metadata.items() if k != key}
        with contextlib.suppress(SpecError):
            read_model(replace(header, metadata=rest), path)


def llama_file(path: Path, meta: Meta | None = None, **changed: Any) -> Path:
    """A one-layer Llama; `changed` are types of tensors by their short name."""
    shapes = {
        "token_embd": (40, 256),
        "output": (40, 256),
        "output_norm": (256,),
        "blk.0.attn_norm": (256,),
        "blk.0.ffn_norm": (256,),
        "blk.0.attn_q": (256, 256),
        "blk.0.attn_k": (128, 256),
        "blk.0.attn_v": (128, 256),
        "blk.0.attn_output": (256, 256),
        "blk.0.ffn_gate": (512, 256),
        "blk.0.ffn_up": (512, 256),
        "blk.0.ffn_down": (256, 512),
    }
    tensors, types = {}, {}
    for name, shape in shapes.items():
        full = name + ".weight"
        short = name.rsplit(".", 1)[-1]
        kind = changed.get(short, changed.get("default", "F16") if len(shape) > 1 else "F32")
        if kind in ("F16", "F32"):
            tensors[full] = np.zeros(shape, np.float16 if kind == "F16" else np.float32)
            continue
        _, per_block, block_bytes = next(t for t in TYPES.values() if t[0] == kind)
        width = shape[-1] // per_block * block_bytes
        tensors[full] = np.zeros((*shape[:-1], width), np.uint8)
        types[full] = gguf.GGMLQuantizationType[kind]
    base = {
        "context_length": 64,
        "embedding_length": 256,
        "block_count": 1,
        "feed_forward_length": 512,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    return write(path, "llama", {**base, **(meta or {})}, tensors, types=types)


def test_types_become_formats(tmp_path: Path) -> None:
    path = llama_file(
        tmp_path / "m.gguf", default="Q4_K", token_embd="Q6_K", output="Q6_K", ffn_down="Q4_K"
    )
    file = read_gguf(path)
    assert file.model.precision.weights == "q4_k"
    assert file.model.precision.embeddings == "q6_k"
    assert file.model.precision.cache == "fp16"
    assert file.warnings == ()
    assert file.n_params == count_params(file.model).total
    assert set(file.bytes_by_type) == {"Q4_K", "Q6_K", "F32"}


def test_a_mixture_of_types_says_how_far_off_it_is_judged(tmp_path: Path) -> None:
    path = llama_file(tmp_path / "m.gguf", default="Q4_K", ffn_down="Q8_0", attn_v="Q8_0")
    (warning,) = read_gguf(path).warnings
    assert "mixes types" in warning
    assert "judged as q4_k inside" in warning


def test_experts_of_another_type_have_a_format_of_their_own() -> None:
    def tensor(name: str, kind: str, n_bytes: int) -> TensorInfo:
        return TensorInfo(name=name, type=kind, shape=(64, 32), n_bytes=n_bytes)

    formats, warnings = _precision(
        [
            tensor("token_embd.weight", "Q8_0", 64 * 34),
            tensor("blk.0.attn_q.weight", "Q8_0", 64 * 34),
            tensor("blk.0.ffn_up_exps.weight", "MXFP4", 64 * 17),
            tensor("blk.0.ffn_down_exps.weight", "MXFP4", 64 * 17),
        ]
    )
    assert (formats.weights, formats.experts) == ("int8-g32", "mxfp4")
    assert warnings == []


def test_bits_are_those_of_ggmls_blocks() -> None:
    for kind, (per_block, block_bytes) in gguf.constants.GGML_QUANT_SIZES.items():
        if kind.name.startswith(("I8", "I16", "I32", "I64", "F64", "Q1_")):
            continue
        assert TYPES[kind.value] == (kind.name, per_block, block_bytes)
        names = {"F32": "fp32", "F16": "fp16", "Q4_0": "int4-g32", "Q8_0": "int8-g32"}
        name = names.get(kind.name, kind.name.lower())
        assert FORMATS[name].bits == 8 * block_bytes / per_block, name


def test_buffers_and_vocabularies_are_no_parameters(tmp_path: Path) -> None:
    tokens = [f"token {i}" for i in range(5000)]
    path = llama_file(tmp_path / "m.gguf", {"tokenizer.ggml.tokens": tokens})
    header = read_header(path)
    assert header.metadata["tokenizer.ggml.tokens"] == 5000
    assert read_gguf(path).warnings == ()


def test_metadata_nobody_asked_for_is_a_warning(tmp_path: Path) -> None:
    path = llama_file(tmp_path / "m.gguf", {"attention.sliding_window": 32, "new_feature": 0})
    (warning,) = read_gguf(path).warnings
    assert warning.endswith("without a meaning here: attention.sliding_window")


def test_a_mismatch_of_counts_is_a_warning_with_both_numbers(tmp_path: Path) -> None:
    path = llama_file(tmp_path / "m.gguf", {"feed_forward_length": 1024})
    file = read_gguf(path)
    (warning,) = file.warnings
    assert f"{file.n_params:,}" in warning
    assert f"{count_params(file.model).total:,}" in warning
    assert "fewer" in warning


def test_layers_without_tensors_are_refused(tmp_path: Path) -> None:
    path = llama_file(tmp_path / "m.gguf", {"block_count": 2**31})
    with pytest.raises(SpecError, match="block_count: must be the 1 layers that have tensors"):
        read_gguf(path)


def test_missing_metadata_are_named_together(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "llama", {"context_length": 64}, {})
    with pytest.raises(SpecError) as caught:
        read_gguf(path)
    text = str(caught.value)
    for name in ("embedding_length", "block_count", "attention.head_count", "token_embd.weight"):
        assert f"{name}: missing" in text


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown GGUF architecture 'qwen4'; did you mean"):
        read_gguf(write(tmp_path / "a.gguf", "qwen4", {}, {}))
    with pytest.raises(SpecError, match="architecture rwkv7: its layers are of a later RWKV"):
        read_gguf(write(tmp_path / "b.gguf", "rwkv7", {}, {}))


def test_a_split_file_is_read_with_all_its_parts(tmp_path: Path) -> None:
    whole = read_gguf(llama_file(tmp_path / "whole.gguf"))
    header = read_header(tmp_path / "whole.gguf")
    names = [t.name for t in header.tensors]
    meta = {
        key.removeprefix("llama."): value
        for key, value in header.metadata.items()
        if key.startswith("llama.")
    }
    shapes = {t.name: t.shape for t in header.tensors}
    for no in (1, 2):
        part = {
            name: np.zeros(shapes[name], np.float16 if len(shapes[name]) > 1 else np.float32)
            for name in names[no - 1 :: 2]
        }
        path = tmp_path / f"m-{no:05}-of-00002.gguf"
        write(path, "llama", {**(meta if no == 1 else {}), "split.count": 2}, part)
    file = read_gguf(tmp_path / "m-00002-of-00002.gguf")
    assert (file.n_params, file.warnings) == (whole.n_params, ())
    (tmp_path / "m-00001-of-00002.gguf").unlink()
    with pytest.raises(SpecError, match=r"one of 2 parts, not here: m-00001-of-00002\.gguf"):
        read_gguf(tmp_path / "m-00002-of-00002.gguf")


def _file(*parts: bytes, n_tensors: int = 0, n_pairs: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_pairs) + b"".join(parts) + bytes(64)


def _key(name: bytes = b"k") -> bytes:
    return struct.pack("<Q", len(name)) + name


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "expected the file to begin with b'GGUF', got b''"),
    "another format": (b"PK\x03\x04" + bytes(50), r"begin with b'GGUF', got b'PK"),
    "cut in its counts": (b"GGUF\x03\x00\x00\x00", "expected 8 bytes of a number, got 0"),
    "old version": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 2 or 3, got 1"),
    "tensors beyond the file": (_file(n_tensors=2**60, n_pairs=0), "bytes of tensors and metadata"),
    "pairs beyond the file": (_file(n_pairs=2**60), "bytes of tensors and metadata"),
    "long key": (_file(struct.pack("<Q", 2**62)), "text of at most 16777216 bytes, got 46116"),
    "long text": (_file(_key(), struct.pack("<IQ", 8, 2**40)), "k: text of at most"),
    "text beyond the file": (_file(_key(), struct.pack("<IQ", 8, 2**20)), "bytes of k, got 64"),
    "array beyond the file": (
        _file(_key(), struct.pack("<IIQ", 9, 4, 2**61)),
        "bytes of k, got 64 to the end; cut off",
    ),
    "texts beyond the file": (_file(_key(), struct.pack("<IIQ", 9, 8, 2**61)), "bytes of k"),
    "array of arrays": (
        _file(_key(), struct.pack("<IIQ", 9, 9, 1)),
        "numbers or texts, got type 9",
    ),
    "unknown value": (_file(_key(), struct.pack("<I", 77)), "a type of value from 0 to 12, got 77"),
    "many dimensions": (
        _file(_key(b"w"), struct.pack("<I", 9), n_tensors=1, n_pairs=0),
        "tensor w: at most 4 dimensions, got 9",
    ),
    "unknown type": (
        _file(_key(b"w"), struct.pack("<IQIQ", 1, 8, 250, 0), n_tensors=1, n_pairs=0),
        "tensor w: a type of ggml, got number 250",
    ),
    "broken blocks": (
        _file(_key(b"w"), struct.pack("<IQIQ", 1, 31, 2, 0), n_tensors=1, n_pairs=0),
        "tensor w: Q4_0 in blocks of 32, got 31 elements",
    ),
    "cut in its data": (
        _file(_key(b"w"), struct.pack("<IQIQ", 1, 2**40, 0, 0), n_tensors=1, n_pairs=0),
        "bytes with all tensors, got .*; cut off",
    ),
}


@pytest.mark.parametrize("damage", HOSTILE)
def test_a_hostile_header_is_refused_before_it_costs_anything(damage: str, tmp_path: Path) -> None:
    raw, message = HOSTILE[damage]
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    with pytest.raises(SpecError, match=message):
        read_header(path)


def test_every_prefix_of_a_file_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    whole = llama_file(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for end in [*range(0, 1200, 7), len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(SpecError):
            read_header(path)


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    pair = struct.pack(">Q", 1) + b"k" + struct.pack(">II", 4, 7)
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 1) + pair)
    assert read_header(path).metadata == {"k": 7}
