"""Weights of a `.gguf`: files as llama.cpp's converter writes them, read by us and by others.

The files are made here from tiny random checkpoints of `transformers`: its tensors, rearranged as
the converter does (`converted`), under the names that the `gguf` package gives them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from nn.gguf_files import BASE, HEADS, RMS, Arrays, Config, in_pairs, is_converted, reference, write
from nn.tolerances import assert_near

import worthit
from worthit.errors import SpecError
from worthit.nn.weights.gguf import GgufTensors
from worthit.spec._gguf_header import read_header

LAYERNORM: Config = {k: v for k, v in BASE.items() if k != "rms_norm_eps"} | {
    "layer_norm_eps": 1e-5
}
MOE: Config = {**BASE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
MAMBA: Config = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 4,
    "time_step_rank": 3,
    "layer_norm_epsilon": 1e-5,
}
LN = {**HEADS, "attention.layer_norm_epsilon": 1e-5, "rope.freq_base": 10_000.0}
EXPERTS = {"expert_count": 4, "expert_used_count": 2}
# Name of the architecture, type of the checkpoint, its config, the metadata.
MODELS: dict[str, tuple[str, str, Config, Config]] = {
    "llama": ("llama", "llama", BASE, RMS),
    "llama with biases": ("llama", "llama", {**BASE, "attention_bias": True}, RMS),
    "mixtral": (
        "llama",
        "mixtral",
        {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        {**RMS, **EXPERTS},
    ),
    "qwen2, tied": ("qwen2", "qwen2", {**BASE, "tie_word_embeddings": True}, RMS),
    "qwen3": ("qwen3", "qwen3", {**BASE, "head_dim": 12}, {**RMS, "attention.key_length": 12}),
    "qwen2moe": (
        "qwen2moe",
        "qwen2_moe",
        {**MOE, "shared_expert_intermediate_size": 20, "norm_topk_prob": False},
        {**RMS, **EXPERTS, "expert_feed_forward_length": 12},
    ),
    "qwen3moe": (
        "qwen3moe",
        "qwen3_moe",
        {**MOE, "head_dim": 8, "norm_topk_prob": True},
        {**RMS, **EXPERTS, "attention.key_length": 8, "expert_feed_forward_length": 12},
    ),
    "gemma": (
        "gemma",
        "gemma",
        {**BASE, "head_dim": 12, "tie_word_embeddings": True},
        {**RMS, "attention.key_length": 12},
    ),
    "gemma2": (
        "gemma2",
        "gemma2",
        {**BASE, "head_dim": 12, "sliding_window": 16, "query_pre_attn_scalar": 12}
        | {"tie_word_embeddings": True},
        {
            **RMS,
            "attention.key_length": 12,
            "attention.sliding_window": 16,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": (
        "gemma3",
        "gemma3_text",
        {**BASE, "head_dim": 12, "sliding_window": 16, "query_pre_attn_scalar": 12}
        | {"tie_word_embeddings": True, "num_hidden_layers": 7, "rope_theta": 1e6},
        {
            **RMS,
            "block_count": 7,
            "attention.key_length": 12,
            "attention.sliding_window": 16,
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 10_000.0,
        },
    ),
    "phi3": (
        "phi3",
        "phi3",
        {**BASE, "sliding_window": 32},
        {**RMS, "attention.sliding_window": 32, "rope.dimension_count": 8},
    ),
    "gpt2": (
        "gpt2",
        "gpt2",
        {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
        {**LN, "feed_forward_length": 128},
    ),
    "gptneox": (
        "gptneox",
        "gpt_neox",
        {k: v for k, v in LAYERNORM.items() if k != "num_key_value_heads"}
        | {"hidden_act": "gelu", "partial_rotary_factor": 0.25},
        {**LN, "use_parallel_residual": True, "rope.dimension_count": 2},
    ),
    "starcoder2": (
        "starcoder2",
        "starcoder2",
        {k: v for k, v in LAYERNORM.items() if k != "layer_norm_eps"}
        | {"norm_epsilon": 1e-5, "sliding_window": None, "tie_word_embeddings": True},
        LN,
    ),
    "stablelm, a norm a head": (
        "stablelm",
        "stablelm",
        {**LAYERNORM, "use_qkv_bias": True, "partial_rotary_factor": 0.25, "qk_layernorm": True},
        {**LN, "rope.dimension_count": 2},
    ),
    "olmo2": ("olmo2", "olmo2", BASE, RMS),
    "olmoe": (
        "olmoe",
        "olmoe",
        {**BASE, "num_experts": 4, "num_experts_per_tok": 2},
        {**RMS, **EXPERTS},
    ),
    "mamba": (
        "mamba",
        "mamba",
        MAMBA,
        {
            "context_length": 2**20,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 64,
            "ssm.state_size": 4,
            "ssm.time_step_rank": 3,
        },
    ),
    "granite": (
        "granite",
        "granite",
        {
            **BASE,
            "attention_multiplier": 0.25,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 8.0,
        },
        {
            **RMS,
            "attention.scale": 0.25,
            "embedding_scale": 12.0,
            "residual_scale": 0.5,
            "logit_scale": 8.0,
        },
    ),
    "bloom": (
        "bloom",
        "bloom",
        {"vocab_size": 40, "hidden_size": 32, "n_layer": 2, "n_head": 4, "seq_length": 128},
        {**LN, "feed_forward_length": 128},
    ),
    "command-r": (
        "command-r",
        "cohere",
        {**LAYERNORM, "tie_word_embeddings": True, "logit_scale": 0.0625},
        {**LN, "logit_scale": 0.0625},
    ),
    "smollm3": ("smollm3", "smollm3", {**BASE, "tie_word_embeddings": True}, RMS),
}
# What transformers' own reader of GGUF files takes at this size: a second opinion on `converted`.
ALSO_READ_BY_TRANSFORMERS = ("llama", "qwen2, tied", "mamba")


def converted(arch: str, config: Config, name: str, tensor: Any) -> Iterator[tuple[str, Any]]:
    """One published tensor as the converter's `modify_tensors` hands it on."""
    if ".experts." in name:
        stem, part = name.split(".experts.")
        stem = stem.replace("block_sparse_moe", "mlp")
        parts = {"gate_up_proj": ("gate_proj", "up_proj")}.get(part, (part,))
        for one, piece in zip(parts, tensor.chunk(len(parts), dim=1), strict=True):
            yield f"{stem}.experts.{one}.weight", piece
        return
    if arch in ("llama", "granite", "smollm3") and ".q_proj." in name:
        tensor = in_pairs(tensor, config["num_attention_heads"])
    if arch in ("llama", "granite", "smollm3") and ".k_proj." in name:
        tensor = in_pairs(tensor, config["num_key_value_heads"])
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        tensor = tensor + 1
    if arch == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        tensor = tensor.transpose(1, 0)
    if arch == "bloom":
        name = name.removeprefix("transformer.")
    if name.endswith((".query_key_value.weight", ".query_key_value.bias")):
        heads = tensor.reshape(4, 3, 8, *tensor.shape[1:])
        tensor = torch.cat([heads[:, i].reshape(32, *tensor.shape[1:]) for i in range(3)])
    if name.endswith(".A_log"):
        tensor = -torch.exp(tensor)
    if "conv1d.weight" in name or "shared_expert_gate" in name:
        tensor = tensor.squeeze()
    yield name, tensor


def arrays(kind: str, model: Any) -> Arrays:
    """Every tensor of the file, by name."""
    arch, _, config, meta = MODELS[kind]
    number = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names = gguf.get_tensor_name_map(number, meta.get("block_count", 2))
    found: Arrays = {}
    norms: dict[str, list[Any]] = {}
    for full, parameter in model.named_parameters():
        for name, tensor in converted(arch, config, full, parameter.detach()):
            if "_layernorm.norms." in name:
                stem = name.split(".norms.")[0] + ".weight"
                norms.setdefault(stem, []).append(tensor)
                continue
            mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert mapped is not None, name
            found[mapped] = tensor.contiguous().numpy()
    for stem, parts in norms.items():
        mapped = names.get_name(stem, try_suffixes=(".weight",))
        found[mapped] = torch.stack(parts).numpy()
    return found


def file_of(kind: str, folder: Path) -> tuple[Path, Any]:
    arch, model_type, config, meta = MODELS[kind]
    model = reference(model_type, config)
    return write(folder / "model.gguf", arch, meta, arrays(kind, model)), model


@pytest.mark.parametrize("kind", MODELS)
def test_the_file_gives_the_logits_of_its_checkpoint(kind: str, tmp_path: Path) -> None:
    path, model = file_of(kind, tmp_path)
    ids = torch.randint(0, 40, (2, 21))
    with torch.no_grad():
        assert_near(worthit.load_model(path)(ids), model(ids).logits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALSO_READ_BY_TRANSFORMERS)
def test_transformers_reads_the_file_as_the_same_model(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    path, model = file_of(kind, tmp_path)
    ids = torch.randint(0, 40, (1, 9))
    read = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        assert_near(read(ids).logits, model(ids).logits)
        assert_near(worthit.load_model(path)(ids), read(ids).logits)


# --- types --------------------------------------------------------------------------------------

BY_GGUF = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")
K_QUANTS = ("Q4_K", "Q5_K", "Q6_K")


def test_stored_types_are_read_as_gguf_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = rng.standard_normal((3, 512), dtype=np.float32)
    writer = gguf.GGUFWriter(tmp_path / "types.gguf", "llama")
    writer.add_tensor("F32", data)
    for kind in BY_GGUF:
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(kind, gguf.quantize(data, number), raw_dtype=number)
    for kind in K_QUANTS:
        # gguf does not quantize to these: blocks of random bits, with scales that are numbers.
        number = gguf.GGMLQuantizationType[kind]
        block, n_bytes = gguf.GGML_QUANT_SIZES[number]
        raw = rng.integers(0, 256, (3, 512 // block, n_bytes), dtype=np.uint8)
        at = n_bytes - 2 if kind == "Q6_K" else 0
        raw[..., at : at + 2] = np.array([0.01], np.float16).view(np.uint8)
        if kind != "Q6_K":
            raw[..., 2:4] = np.array([0.02], np.float16).view(np.uint8)
        writer.add_tensor(kind, raw.reshape(3, -1), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    tensors = GgufTensors.of(read_header(tmp_path / "types.gguf"), "here")
    reader = gguf.GGUFReader(tmp_path / "types.gguf")
    assert {t.name for t in reader.tensors} == {"F32", *BY_GGUF, *K_QUANTS}
    for stored in reader.tensors:
        expected = torch.from_numpy(np.array(gguf.dequantize(stored.data, stored.tensor_type)))
        got = tensors.read(stored.name)
        assert got.shape == (3, 512)
        torch.testing.assert_close(got.float(), expected.float().reshape(3, 512), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_a_model_of_another_type_is_the_model_of_its_numbers(kind: str, tmp_path: Path) -> None:
    arch, model_type, config, meta = MODELS["llama"]
    model = reference(model_type, config)
    found = arrays("llama", model)
    path = write(tmp_path / "model.gguf", arch, meta, found, kind)
    number = gguf.GGMLQuantizationType[kind]
    rounded = {
        name: gguf.dequantize(gguf.quantize(data, number), number)
        if is_converted(data, kind)
        else data
        for name, data in found.items()
    }
    plain = write(tmp_path / "plain.gguf", arch, meta, rounded)
    ids = torch.randint(0, 40, (1, 9))
    loaded = worthit.load_model(path)
    stored = {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
    assert {p.dtype for p in loaded.parameters()} == {stored}
    with torch.no_grad():
        assert_near(worthit.load_model(path, dtype="fp32")(ids), worthit.load_model(plain)(ids))


def test_rotary_factors_of_the_file_are_applied(tmp_path: Path) -> None:
    """Llama 3's files hold the stretch of each frequency as a tensor."""
    arch, model_type, config, meta = MODELS["llama"]
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 10_000.0,
    }
    model = reference(model_type, {**config, "rope_parameters": scaling})
    theta = 10_000.0 ** (-np.arange(0, 8, 2) / 8)
    factors = np.array(theta / model.model.rotary_emb.inv_freq.numpy(), np.float32)
    assert factors.max() > 7  # control: something is stretched
    tensors = {**arrays("llama", model), "rope_freqs.weight": factors}
    path = write(tmp_path / "model.gguf", arch, meta, tensors)
    ids = torch.randint(0, 40, (1, 64))
    with torch.no_grad():
        assert_near(worthit.load_model(path)(ids), model(ids).logits)


# --- what does not fit --------------------------------------------------------------------------


def test_everything_that_does_not_fit_is_said_at_once(tmp_path: Path) -> None:
    arch, model_type, config, meta = MODELS["llama"]
    found = arrays("llama", reference(model_type, config))
    del found["blk.1.attn_norm.weight"]
    found["blk.0.attn_k.weight"] = found["blk.0.attn_k.weight"][:8]
    found["blk.1.surprise.weight"] = np.zeros((2, 2), np.float32)
    path = write(tmp_path / "model.gguf", arch, meta, found)
    with pytest.raises(SpecError) as caught:
        worthit.load_model(path)
    said = str(caught.value)
    assert "model.gguf: 3 problems" in said
    assert "blk.1.attn_norm.weight: missing" in said
    assert "blk.0.attn_k.weight: expected the shape [16, 32], got [8, 32]" in said
    assert "blk.1.surprise.weight: not a tensor of this model" in said


def test_a_type_that_cannot_be_dequantized_is_named(tmp_path: Path) -> None:
    arch, model_type, config, meta = MODELS["llama"]
    found = arrays("llama", reference(model_type, config))
    found["blk.0.ffn_up.weight"] = np.zeros((48, 32), np.int8)
    path = write(tmp_path / "model.gguf", arch, meta, found)
    with pytest.raises(SpecError, match=r"blk\.0\.ffn_up\.weight: tensor type I8 cannot"):
        worthit.load_model(path)


def test_a_cut_off_file_is_an_error(tmp_path: Path) -> None:
    path, _ = file_of("llama", tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SpecError, match="cut off"):
        worthit.load_model(path)
