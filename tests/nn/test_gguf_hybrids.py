"""`.gguf` weights of the models that the converter changes most: latents, states, piled experts.

As in `test_gguf_weights`, but from what `transformers` publishes (`save_pretrained`), which is what
the converter reads. Names, shapes and metadata were read off files that llama.cpp's
`convert_hf_to_gguf.py` of May 2026 wrote of these checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from nn.gguf_files import BASE, HEADS, RMS, Arrays, Config, in_pairs, reference, write
from nn.test_gguf_weights import MODELS as PLAIN_MODELS
from nn.tolerances import assert_near
from safetensors.torch import load_file

import worthit
from worthit.errors import SpecError, UnknownName
from worthit.spec.gguf import CONFIGS

NO_ROPE = {**HEADS, "attention.layer_norm_rms_epsilon": 1e-5}
FOUR: Config = {**BASE, "num_hidden_layers": 4}
SSM = {"ssm.conv_kernel": 4, "ssm.state_size": 4, "ssm.inner_size": 64}
MAMBA2_META = {**SSM, "ssm.group_count": 2, "ssm.time_step_rank": 8}
MAMBA2: Config = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 4,
    "mamba_expand": 2,
}
MLA: Config = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
}
MLA_META = {
    **RMS,
    "attention.head_count_kv": 1,
    "attention.kv_lora_rank": 16,
    "attention.key_length": 20,
    "attention.value_length": 16,
    "attention.key_length_mla": 12,
    "attention.value_length_mla": 12,
    "rope.dimension_count": 4,
    "leading_dense_block_count": 1,
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_feed_forward_length": 12,
    "expert_shared_count": 1,
    "expert_weights_scale": 2.5,
}
V3: Config = {**MLA, "n_group": 2, "topk_group": 1, "norm_topk_prob": True}
V3_META = {
    **MLA_META,
    "attention.q_lora_rank": 16,
    "expert_group_count": 2,
    "expert_group_used_count": 1,
    "expert_weights_norm": True,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "beta_fast": 32.0, "beta_slow": 1.0}
YARN_META = {
    "rope.scaling.type": "yarn",
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
}
GRANITE: Config = {
    **FOUR,
    **MAMBA2,
    "layer_types": ["mamba", "attention", "mamba", "mamba"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 20,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 8.0,
}
GRANITE_META = {
    **RMS,
    **MAMBA2_META,
    "block_count": 4,
    "attention.head_count_kv": [0, 2, 0, 0],
    "attention.scale": 0.25,
    "embedding_scale": 12.0,
    "residual_scale": 0.5,
    "logit_scale": 8.0,
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_shared_feed_forward_length": 20,
    "rope.dimension_count": 8,
    "rope.scaling.finetuned": False,
}
FALCON_H1: Config = {**BASE, **MAMBA2, "mamba_d_ssm": 64, "head_dim": 12}
FALCON_H1_META = {**RMS, **MAMBA2_META, "attention.key_length": 12, "attention.value_length": 12}
MULTIPLIERS: Config = {
    "attention_in_multiplier": 0.9,
    "attention_out_multiplier": 1.2,
    "key_multiplier": 0.7,
    "ssm_in_multiplier": 1.1,
    "ssm_out_multiplier": 0.8,
    "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.95],
    "mlp_multipliers": [0.9, 1.3],
    "lm_head_multiplier": 0.5,
    "embedding_multiplier": 3.0,
}
NEMOTRON: Config = {
    **{k: v for k, v in FOUR.items() if k not in ("rms_norm_eps", "rope_theta")},
    "layer_norm_epsilon": 1e-5,
    "head_dim": 12,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 4,
    "n_groups": 2,
}
NEMOTRON_META = {
    **NO_ROPE,
    **MAMBA2_META,
    "block_count": 4,
    "attention.head_count_kv": [0, 0, 2, 0],
    "attention.key_length": 12,
    "attention.value_length": 12,
    "feed_forward_length": [0, 48, 0, 48],
    "rope.scaling.finetuned": False,
}

# Name of the architecture, type of the checkpoint, its config, the metadata.
MODELS: dict[str, tuple[str, str, Config, Config]] = {
    "deepseek2": ("deepseek2", "deepseek_v3", {**BASE, **V3}, V3_META),
    "deepseek2, stretched": (
        "deepseek2",
        "deepseek_v3",
        {
            **{k: v for k, v in BASE.items() if k != "rope_theta"},
            **V3,
            "rope_parameters": {
                **YARN,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        },
        {
            **V3_META,
            **YARN_META,
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.yarn_log_multiplier": 0.1,
        },
    ),
    "deepseek2, version 2": (
        "deepseek2",
        "deepseek_v2",
        {**BASE, **MLA, "q_lora_rank": None, "topk_method": "greedy", "norm_topk_prob": False},
        MLA_META,
    ),
    "gpt-oss": (
        "gpt-oss",
        "gpt_oss",
        {
            **{k: v for k, v in BASE.items() if k != "rope_theta"},
            "head_dim": 12,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "rope_parameters": {
                **YARN,
                "factor": 32.0,
                "original_max_position_embeddings": 4,
                "truncate": False,
            },
        },
        {
            **RMS,
            **YARN_META,
            "attention.key_length": 12,
            "attention.sliding_window": 16,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 48,
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4,
        },
    ),
    "mamba, Falcon's": (
        "mamba",
        "falcon_mamba",
        {
            "vocab_size": 40,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 4,
            "time_step_rank": 3,
            "layer_norm_epsilon": 1e-5,
        },
        {**NO_ROPE, **SSM, "ssm.time_step_rank": 3, "ssm.dt_b_c_rms": True},
    ),
    "mamba2": (
        "mamba2",
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
        {**NO_ROPE, **MAMBA2_META, "attention.head_count": 0},
    ),
    "jamba": (
        "jamba",
        "jamba",
        {
            **{k: v for k, v in FOUR.items() if k != "rope_theta"},
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
            **NO_ROPE,
            **SSM,
            "block_count": 4,
            "attention.head_count_kv": [0, 0, 2, 0],
            "ssm.time_step_rank": 3,
            "expert_count": 4,
            "expert_used_count": 2,
        },
    ),
    "granitehybrid": ("granitehybrid", "granitemoehybrid", GRANITE, GRANITE_META),
    "granitehybrid, dense": (
        "granitehybrid",
        "granitemoehybrid",
        {**GRANITE, "num_local_experts": 0, "num_experts_per_tok": 0},
        {k: v for k, v in GRANITE_META.items() if not k.startswith("expert_")},
    ),
    "granitehybrid, Bamba": (
        "granitehybrid",
        "bamba",
        {**FOUR, **MAMBA2, "attn_layer_indices": [1], "attn_rotary_emb": 4},
        {
            **RMS,
            **MAMBA2_META,
            "block_count": 4,
            "attention.head_count_kv": [0, 2, 0, 0],
            "rope.dimension_count": 4,
            "rope.scaling.finetuned": True,
        },
    ),
    "falcon-h1": (
        "falcon-h1",
        "falcon_h1",
        {**FALCON_H1, **MULTIPLIERS, "mamba_rms_norm": True, "mamba_norm_before_gate": False},
        FALCON_H1_META,
    ),
    "falcon-h1, without its norm": (
        "falcon-h1",
        "falcon_h1",
        {**FALCON_H1, **MULTIPLIERS, "mamba_rms_norm": False},
        FALCON_H1_META,
    ),
    "nemotron_h": (
        "nemotron_h",
        "nemotron_h",
        {**NEMOTRON, "hybrid_override_pattern": "M-*-"},
        NEMOTRON_META,
    ),
    "nemotron_h_moe": (
        "nemotron_h_moe",
        "nemotron_h",
        {
            **NEMOTRON,
            "hybrid_override_pattern": "ME*E",
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "moe_shared_expert_intermediate_size": 20,
            "moe_latent_size": 16,
            "routed_scaling_factor": 2.5,
            "n_group": 2,
            "topk_group": 1,
            "norm_topk_prob": True,
        },
        {
            **NEMOTRON_META,
            "feed_forward_length": [0, 12, 0, 12],
            "expert_count": 8,
            "expert_used_count": 2,
            "expert_group_count": 2,
            "expert_group_used_count": 1,
            "expert_feed_forward_length": 12,
            "expert_shared_feed_forward_length": 20,
            "expert_shared_count": 1,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
            "moe_latent_size": 16,
        },
    ),
    "qwen3next": (
        "qwen3next",
        "qwen3_next",
        {
            **FOUR,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "head_dim": 8,
            "shared_expert_intermediate_size": 20,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "partial_rotary_factor": 0.5,
            "norm_topk_prob": True,
        },
        {
            **RMS,
            "block_count": 4,
            "attention.key_length": 8,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 12,
            "expert_shared_feed_forward_length": 20,
            "rope.dimension_count": 4,
            "ssm.conv_kernel": 4,
            "ssm.state_size": 8,
            "ssm.group_count": 2,
            "ssm.time_step_rank": 4,
            "ssm.inner_size": 32,
            "full_attention_interval": 4,
        },
    ),
}
PERMUTED = ("granitehybrid", "nemotron_h", "nemotron_h_moe")


def converted(arch: str, c: Config, name: str, t: Any) -> Iterator[tuple[str, Any]]:
    """One published tensor as the converter's `modify_tensors` hands it on."""
    name = name.replace("e_score_correction_bias", "e_score_correction.bias")
    name = name.replace(".dt_bias", ".dt_proj.bias")
    if arch in PERMUTED and ".q_proj." in name:
        t = in_pairs(t, c["num_attention_heads"])
    if arch in PERMUTED and ".k_proj." in name:
        t = in_pairs(t, c["num_key_value_heads"])
    if ".conv1d.weight" in name:
        t = t.squeeze(1)
    if name.endswith(".A_log"):
        t = -torch.exp(t)
    is_mamba2 = arch in (*PERMUTED, "mamba2", "falcon-h1")
    if is_mamba2 and name.endswith((".A_log", ".D")):
        t = t[:, None]
    if is_mamba2 and name.endswith((".mixer.norm.weight", ".mamba.norm.weight")):
        t = t.reshape(2, 32)
    if arch == "deepseek2" and name.endswith("kv_b_proj.weight"):
        both = t.view(4, 8 + 12, 16)
        yield name.replace("kv_b_proj", "k_b_proj"), both[:, :8].transpose(1, 2)
        yield name.replace("kv_b_proj", "v_b_proj"), both[:, 8:]
        return
    if arch == "qwen3next":
        yield from _qwen3next(name, t)
        return
    if arch == "gpt-oss":
        yield from _gpt_oss(name, t)
        return
    if arch == "falcon-h1":
        t = t * _folded(name, c)
    if "block_sparse_moe.input_linear" in name or "shared_mlp.input_linear" in name:
        stem = name.split(".block_sparse_moe.")[0].split(".shared_mlp.")[0]
        kind = "experts" if "sparse" in name else "shared_experts"
        where = "mlp" if "sparse" not in name and not c["num_local_experts"] else f"mlp.{kind}"
        for part, half in zip(("gate", "up"), t.chunk(2, dim=-2), strict=True):
            yield f"{stem}.{where}.{part}_proj.weight", half
        return
    if "block_sparse_moe.output_linear" in name:
        name = name.replace("block_sparse_moe.output_linear", "mlp.experts.down_proj")
    if "shared_mlp.output_linear" in name:
        where = "mlp.shared_experts" if c["num_local_experts"] else "mlp"
        name = name.replace("shared_mlp.output_linear", f"{where}.down_proj")
    yield name, t


def _qwen3next(name: str, t: Any) -> Iterator[tuple[str, Any]]:
    if name.endswith("norm.weight") and "linear_attn" not in name:
        t = t + 1
    if "in_proj_qkvz" not in name:
        yield name, t
        return
    # By key heads: query 8, key 8, and of two value heads value 16 and gate 16.
    q, k, v, z = t.view(2, 48, 32).split([8, 8, 16, 16], dim=1)
    block = name.split(".")[2]
    yield f"blk.{block}.attn_qkv", torch.cat([p.reshape(-1, 32) for p in (q, k, v)])
    yield f"blk.{block}.attn_gate", z.reshape(-1, 32)


def _gpt_oss(name: str, t: Any) -> Iterator[tuple[str, Any]]:
    leaf = "bias" if name.endswith("_bias") else "weight"
    if "gate_up_proj" in name:
        t = t if leaf == "bias" else t.transpose(1, 2)
        stem = name.split("gate_up_proj")[0]
        yield f"{stem}gate_proj.{leaf}", t[:, ::2]
        yield f"{stem}up_proj.{leaf}", t[:, 1::2]
    elif ".experts.down_proj" in name:
        stem = name.split("down_proj")[0]
        yield f"{stem}down_proj.{leaf}", t if leaf == "bias" else t.transpose(1, 2)
    else:
        yield (f"{name}.weight" if name.endswith("sinks") else name), t


def _folded(name: str, c: Config) -> Any:
    """Falcon-H1's multiplier of a tensor, for rows where they differ."""
    if ".mamba.in_proj" in name:
        rows = zip(c["ssm_multipliers"], (64, 64, 8, 8, 8), strict=True)
        each = torch.cat([torch.full((n,), value) for value, n in rows])
        return each[:, None] * c["ssm_in_multiplier"]
    heads = c["attention_in_multiplier"]
    known = {
        "down_proj": c["mlp_multipliers"][1],
        "gate_proj": c["mlp_multipliers"][0],
        "k_proj": c["key_multiplier"] * heads,
        "q_proj": heads,
        "v_proj": heads,
        "o_proj": c["attention_out_multiplier"],
        "mamba.out_proj": c["ssm_out_multiplier"],
        "lm_head": c["lm_head_multiplier"],
        "embed_tokens": c["embedding_multiplier"],
    }
    return next((value for part, value in known.items() if f".{part}." in f".{name}"), 1.0)


def arrays(kind: str, model: Any, folder: Path) -> Arrays:
    """Every tensor of the file, by name."""
    arch, _, config, meta = MODELS[kind]
    model.save_pretrained(folder / "published")
    number = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names = gguf.get_tensor_name_map(number, meta.get("block_count", 2))
    found: Arrays = {}
    piles: dict[str, list[Any]] = {}
    published = load_file(folder / "published" / "model.safetensors")
    order = sorted(published, key=lambda name: [int(x) for x in name.split(".") if x.isdigit()])
    for full in order:
        for name, tensor in converted(arch, config, full, published[full]):
            parts = name.split(".experts.")
            if len(parts) == 2 and parts[1][0].isdigit():
                leaf = parts[1].split(".", 1)[1]
                # The names of Qwen's mixtures, whatever the model's own.
                stem = "model.layers." + parts[0].split(".")[2] + ".mlp"
                piles.setdefault(f"{stem}.experts.{leaf}", []).append(tensor)
                continue
            found[_mapped(names, name)] = tensor.contiguous().numpy()
    for name, pile in piles.items():
        found[_mapped(names, name)] = torch.stack(pile).numpy()
    return found


def _mapped(names: Any, name: str) -> str:
    if name.startswith("blk."):
        return f"{name}.weight"
    mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert mapped is not None, name
    return str(mapped)


def written(kind: str, folder: Path, **changes: Any) -> tuple[Path, Any]:
    """The file of one entry of MODELS, some of its tensors changed, and the reference."""
    arch, model_type, config, meta = MODELS[kind]
    model = reference(model_type, config)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "correction_bias" in name:
                buffer.normal_(std=0.1)
    tensors = arrays(kind, model, folder)
    for change in changes.values():
        change(tensors)
    return write(folder / "model.gguf", arch, meta, tensors), model


@pytest.mark.parametrize("kind", MODELS)
def test_the_file_gives_the_logits_of_its_checkpoint(kind: str, tmp_path: Path) -> None:
    path, model = written(kind, tmp_path)
    ids = torch.randint(0, 40, (2, 21))
    with torch.no_grad():
        assert_near(worthit.load_model(path)(ids), model(ids).logits)


def test_every_architecture_that_is_known_is_tested() -> None:
    tested = {arch for arch, *_ in (*MODELS.values(), *PLAIN_MODELS.values())}
    assert tested == set(CONFIGS)


# --- files of other ages ------------------------------------------------------------------------


def _published_latents(tensors: Arrays) -> None:
    """As before 2025, with the published matrix beside or instead of its halves."""
    for i in range(2):
        keys = torch.from_numpy(tensors[f"blk.{i}.attn_k_b.weight"]).transpose(1, 2)
        values = torch.from_numpy(tensors[f"blk.{i}.attn_v_b.weight"])
        tensors[f"blk.{i}.attn_kv_b.weight"] = torch.cat([keys, values], 1).flatten(0, 1).numpy()


def _without_halves(tensors: Arrays) -> None:
    for name in [n for n in tensors if n.endswith(("attn_k_b.weight", "attn_v_b.weight"))]:
        del tensors[name]


@pytest.mark.parametrize("is_alone", [False, True])
def test_latents_as_published_are_read(is_alone: bool, tmp_path: Path) -> None:
    changes = [_published_latents, _without_halves] if is_alone else [_published_latents]
    path, model = written("deepseek2", tmp_path, **{str(i): f for i, f in enumerate(changes)})
    ids = torch.randint(0, 40, (1, 9))
    with torch.no_grad():
        assert_near(worthit.load_model(path)(ids), model(ids).logits)


def test_projections_by_key_heads_are_read(tmp_path: Path) -> None:
    """The first files of Qwen3-Next hold the published matrix, `ssm_in`."""

    def joined(tensors: Arrays) -> None:
        for i in range(3):
            qkv = torch.from_numpy(tensors.pop(f"blk.{i}.attn_qkv.weight"))
            z = torch.from_numpy(tensors.pop(f"blk.{i}.attn_gate.weight"))
            parts = (*qkv.split([16, 16, 32]), z)
            by_head = torch.cat([p.view(2, -1, 32) for p in parts], dim=1)
            tensors[f"blk.{i}.ssm_in.weight"] = by_head.reshape(-1, 32).numpy()

    path, model = written("qwen3next", tmp_path, joined=joined)
    ids = torch.randint(0, 40, (1, 9))
    with torch.no_grad():
        assert_near(worthit.load_model(path)(ids), model(ids).logits)


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    def more(tensors: Arrays) -> None:
        for name in [n for n in tensors if n.startswith("blk.1.")]:
            tensors[name.replace("blk.1.", "blk.2.")] = tensors[name]

    arch, model_type, config, meta = MODELS["deepseek2"]
    model = reference(model_type, config)
    tensors = arrays("deepseek2", model, tmp_path)
    more(tensors)
    more_meta = {**meta, "block_count": 3, "nextn_predict_layers": 1}
    path = write(tmp_path / "model.gguf", arch, more_meta, tensors)
    ids = torch.randint(0, 40, (1, 9))
    with torch.no_grad():
        assert_near(worthit.load_model(path)(ids), model(ids).logits)


# --- what does not fit --------------------------------------------------------------------------


def test_half_of_a_pair_is_missing_by_name(tmp_path: Path) -> None:
    path, _ = written("deepseek2", tmp_path, cut=lambda ts: ts.pop("blk.1.attn_v_b.weight"))
    with pytest.raises(SpecError, match=r"blk\.1\.attn_v_b\.weight: missing"):
        worthit.load_model(path)


def test_an_architecture_that_is_not_known_is_named(tmp_path: Path) -> None:
    _, model_type, config, meta = MODELS["mamba2"]
    found = arrays("mamba2", reference(model_type, config), tmp_path)
    path = write(tmp_path / "model.gguf", "mamba3", meta, found)
    with pytest.raises(UnknownName, match="unknown GGUF architecture 'mamba3'; did you mean"):
        worthit.load_model(path)
