"""Checkpoint folders: headers alone, every damage a sentence, counts equal to the tensors'."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worthit.errors import SpecError
from worthit.spec.checkpoint import is_embedding, read_checkpoint, read_header

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 20,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I32": 4, "U8": 1, "F8_E4M3": 1}


def llama_tensors(dtype: str = "BF16") -> dict[str, tuple[str, list[int]]]:
    """What the reference model of LLAMA stores."""
    shapes: dict[str, list[int]] = {
        "model.embed_tokens.weight": [20, 8],
        "model.norm.weight": [8],
        "lm_head.weight": [20, 8],
    }
    for i in range(2):
        block = f"model.layers.{i}."
        shapes |= {
            block + "self_attn.q_proj.weight": [8, 8],
            block + "self_attn.k_proj.weight": [4, 8],
            block + "self_attn.v_proj.weight": [4, 8],
            block + "self_attn.o_proj.weight": [8, 8],
            block + "mlp.gate_proj.weight": [12, 8],
            block + "mlp.up_proj.weight": [12, 8],
            block + "mlp.down_proj.weight": [8, 12],
            block + "input_layernorm.weight": [8],
            block + "post_attention_layernorm.weight": [8],
        }
    return {name: (dtype, shape) for name, shape in shapes.items()}


def encode(tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    """A safetensors file, by the format's page: length, JSON, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = BYTES[dtype]
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(at)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "model.safetensors").write_bytes(encode(llama_tensors()))
    return tmp_path


N_PARAMS = 20 * 8 * 2 + 8 + 2 * (8 * 8 * 2 + 4 * 8 * 2 + 12 * 8 * 3 + 16)


def test_a_folder_is_read_by_its_headers(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    assert checkpoint.n_tensors == 21
    assert checkpoint.n_params == N_PARAMS
    assert checkpoint.bytes_by_dtype == {"BF16": 2 * N_PARAMS}
    assert checkpoint.warnings == ()
    assert checkpoint.model.precision.weights == "bf16"
    assert checkpoint.model.name == folder.name


def test_shards_are_found_through_the_index(folder: Path) -> None:
    tensors = llama_tensors()
    names = list(tensors)
    (folder / "model.safetensors").unlink()
    placed = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in sorted(set(placed.values())):
        part = {name: tensors[name] for name in names if placed[name] == shard}
        (folder / shard).write_bytes(encode(part))
    without_index = read_checkpoint(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    # A copy in another layout, which the index does not name.
    (folder / "consolidated.safetensors").write_bytes(encode(tensors))
    assert read_checkpoint(folder) == without_index
    assert without_index.n_params == N_PARAMS

    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SpecError, match=r"names 1 files that are not here: model-00002"):
        read_checkpoint(folder)
    index.unlink()
    (folder / "consolidated.safetensors").unlink()
    with pytest.raises(SpecError, match="expected 2 shards, got 1"):
        read_checkpoint(folder)


def test_an_index_does_not_lead_out_of_the_folder(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    outside.write_bytes(encode(llama_tensors()))
    index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SpecError, match="not here"):
        read_checkpoint(folder)


def test_tensors_decide_the_precision(folder: Path) -> None:
    tensors = llama_tensors("F16")
    tensors["model.embed_tokens.weight"] = ("F32", [20, 8])
    tensors["lm_head.weight"] = ("F32", [20, 8])
    (folder / "model.safetensors").write_bytes(encode(tensors))
    checkpoint = read_checkpoint(folder)
    assert checkpoint.model.precision.weights == "fp16"
    assert checkpoint.model.precision.embeddings == "fp32"
    assert checkpoint.model.precision.cache == "fp16"
    assert "config says bf16 and the tensors are fp16" in checkpoint.warnings[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", True),
        ("transformer.wte.weight", True),
        ("backbone.embeddings.weight", True),
        ("lm_head.weight", True),
        ("head.weight", True),
        ("rwkv.blocks.0.attention.output.weight", False),
        ("model.layers.0.mlp.down_proj.weight", False),
    ],
)
def test_tables_are_told_from_layers_by_name(name: str, expected: bool) -> None:
    assert is_embedding(name) is expected


def test_packed_weights_are_counted_unpacked(folder: Path) -> None:
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    config = {**LLAMA, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for name, (dtype, shape) in llama_tensors("F16").items():
        if "_proj" not in name:
            tensors[name] = (dtype, shape)
            continue
        base, (n_out, n_in) = name.removesuffix(".weight"), shape
        # GPTQ packs eight 4-bit weights along the inputs into an int32.
        tensors[base + ".qweight"] = ("I32", [n_in * n_out // 8, 1])
        tensors[base + ".scales"] = ("F16", [1, n_out])
        tensors[base + ".qzeros"] = ("I32", [1, 1])
        tensors[base + ".g_idx"] = ("I32", [n_in])
    (folder / "model.safetensors").write_bytes(encode(tensors))
    checkpoint = read_checkpoint(folder)
    assert checkpoint.warnings == ()
    assert checkpoint.model.precision.weights == "int4-g128"
    assert checkpoint.model.precision.embeddings == "fp16"


def test_experts_in_mxfp4_are_counted_unpacked(folder: Path) -> None:
    config = {
        **{k: v for k, v in LLAMA.items() if k not in ("model_type", "intermediate_size")},
        "model_type": "gpt_oss",
        "intermediate_size": 32,
        "hidden_size": 32,
        "head_dim": 16,
        "num_hidden_layers": 1,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "quantization_config": {"quant_method": "mxfp4"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    block = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": [20, 32],
        "lm_head.weight": [20, 32],
        "model.norm.weight": [32],
        block + "input_layernorm.weight": [32],
        block + "post_attention_layernorm.weight": [32],
        block + "self_attn.q_proj.weight": [32, 32],
        block + "self_attn.q_proj.bias": [32],
        block + "self_attn.k_proj.weight": [16, 32],
        block + "self_attn.k_proj.bias": [16],
        block + "self_attn.v_proj.weight": [16, 32],
        block + "self_attn.v_proj.bias": [16],
        block + "self_attn.o_proj.weight": [32, 32],
        block + "self_attn.o_proj.bias": [32],
        block + "self_attn.sinks": [2],
        block + "mlp.router.weight": [4, 32],
        block + "mlp.router.bias": [4],
        block + "mlp.experts.gate_up_proj_bias": [4, 64],
        block + "mlp.experts.down_proj_bias": [4, 32],
    }
    tensors = {name: ("BF16", shape) for name, shape in shapes.items()}
    # Two 4-bit weights a byte, 16 bytes a block, a scale each.
    tensors[block + "mlp.experts.gate_up_proj_blocks"] = ("U8", [4, 64, 1, 16])
    tensors[block + "mlp.experts.gate_up_proj_scales"] = ("U8", [4, 64, 1])
    tensors[block + "mlp.experts.down_proj_blocks"] = ("U8", [4, 32, 1, 16])
    tensors[block + "mlp.experts.down_proj_scales"] = ("U8", [4, 32, 1])
    (folder / "model.safetensors").write_bytes(encode(tensors))
    checkpoint = read_checkpoint(folder)
    assert checkpoint.warnings == ()
    assert checkpoint.model.precision.weights == "bf16"
    assert checkpoint.model.precision.experts == "mxfp4"


def test_a_mismatch_is_a_warning_with_both_numbers(folder: Path) -> None:
    tensors = llama_tensors()
    tensors["vision_tower.weight"] = ("BF16", [100, 10])
    (folder / "model.safetensors").write_bytes(encode(tensors))
    (warning,) = read_checkpoint(folder).warnings
    assert f"{N_PARAMS + 1000:,}" in warning
    assert f"{N_PARAMS:,}" in warning
    assert "more than" in warning


def test_buffers_and_a_second_copy_of_a_tied_head_are_no_parameters(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**LLAMA, "tie_word_embeddings": True}))
    tensors = llama_tensors()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", [2])
    (folder / "model.safetensors").write_bytes(encode(tensors))
    assert read_checkpoint(folder).warnings == ()


def test_a_pickle_is_refused_in_one_sentence(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(SpecError, match=r"pickle \(pytorch_model.bin\) run code .* safetensors"):
        read_checkpoint(folder)


def test_a_config_alone_is_a_model_without_tensors(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    checkpoint = read_checkpoint(folder)
    assert (checkpoint.n_tensors, checkpoint.n_params, checkpoint.warnings) == (0, 0, ())


def test_a_folder_without_a_config_says_so(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no config.json in this folder"):
        read_checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SpecError, match="adapter"):
        read_checkpoint(tmp_path)


def _entry(**change: Any) -> bytes:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}
    raw = json.dumps({"w": entry}).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(8)


DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "expected a header, got a file of 0 bytes"),
    "cut in its length": (b"\x01\x02", "expected a header, got a file of 2 bytes"),
    "length beyond the file": ((2**40).to_bytes(8, "little") + b"{}", "expected a header of 1099"),
    "a pickle by the wrong name": (b"\x80\x04\x95" + bytes(40), "expected a header of"),
    "not JSON": ((4).to_bytes(8, "little") + b"abcd", "expected a JSON header, got b'abcd'"),
    "deep JSON": ((90_000).to_bytes(8, "little") + b"[" * 90_000, "expected a JSON header"),
    "a JSON list": ((2).to_bytes(8, "little") + b"[]", "expected a JSON object, got list"),
    "unknown dtype": (_entry(dtype="Q4"), "tensor w: expected a dtype of F64, .* got 'Q4'"),
    "negative shape": (_entry(shape=[-2]), r"tensor w: expected a shape of .* got \[-2\]"),
    "no offsets": (_entry(data_offsets=None), "tensor w: expected two data_offsets, got None"),
    "wrong size": (_entry(shape=[3]), "tensor w: expected 12 bytes of data, got 8"),
    "cut in its data": (_entry()[:-4], "tensor w: expected 8 bytes of data in the file, got 4"),
    "entry not an object": (
        (8).to_bytes(8, "little") + b'{"w": 1}',
        "tensor w: expected an object, got 1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_header_is_named_with_what_was_expected_and_got(
    damage: str, tmp_path: Path
) -> None:
    raw, message = DAMAGED[damage]
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(SpecError, match=f"{re.escape(str(path))}: {message}"):
        read_header(path)


def _saved(model_type: str, **options: Any) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 40, **options}
        config = transformers.AutoConfig.for_model(model_type, **sizes)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)

    return save


_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}
SAVED = {
    "llama, tied": _saved("llama", tie_word_embeddings=True, **_HEADS),
    "mixtral": _saved("mixtral", num_local_experts=4, **_HEADS),
    "gpt2": _saved("gpt2", n_embd=16, n_head=2, n_layer=2, n_positions=32),
    "mamba": _saved("mamba", state_size=4),
    "nemotron_h": _saved(
        "nemotron_h",
        hybrid_override_pattern="M*E",
        head_dim=8,
        mamba_num_heads=4,
        mamba_head_dim=8,
        ssm_state_size=4,
        n_groups=2,
        moe_intermediate_size=8,
        moe_shared_expert_intermediate_size=8,
        **_HEADS,
    ),
    "rwkv": _saved("rwkv"),
}


@pytest.mark.parametrize("kind", SAVED)
def test_what_the_reference_saves_counts_as_its_config_says(kind: str, tmp_path: Path) -> None:
    SAVED[kind](tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.n_params > 0
    assert checkpoint.warnings == ()
    assert checkpoint.model.precision.weights == "fp32"
