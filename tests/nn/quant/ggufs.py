"""A small Llama as a `.gguf` of quantized blocks, with a tokenizer, as llama.cpp's tools do."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from decode.tiny import TEMPLATE, byte_level
from nn.gguf_files import in_pairs

D_MODEL, D_FF, HEADS, KV_HEADS, LAYERS = 64, 128, 4, 2, 2


def llama_gguf(path: Path, kind: str, *, table: str = "Q8_0", norm: str = "F32") -> Path:
    """Matrices of the layers in `kind`, the embedding, which is the head too, in `table`."""
    backend = byte_level()
    tokens = [token for token, _ in sorted(backend.get_vocab().items(), key=lambda kv: kv[1])]
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "block_count": LAYERS,
        "embedding_length": D_MODEL,
        "feed_forward_length": D_FF,
        "vocab_size": len(tokens),
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "context_length": 256,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 10_000.0)
    data = json.loads(backend.to_str())
    special = {token["id"] for token in data["added_tokens"]}
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "smollm")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    types = [3 if i in special else 1 for i in range(len(tokens))]
    writer.add_array("tokenizer.ggml.token_type", types)
    writer.add_array(
        "tokenizer.ggml.merges", [" ".join(merge) for merge in data["model"]["merges"]]
    )
    writer.add_uint32("tokenizer.ggml.bos_token_id", 1)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_string("tokenizer.chat_template", TEMPLATE)
    generator = np.random.default_rng(0)

    def add(name: str, shape: tuple[int, ...], kind: str, n_heads: int = 0) -> None:
        values = generator.normal(size=shape).astype(np.float32) * shape[-1] ** -0.5
        values = in_pairs(values, n_heads) if n_heads else values
        number = gguf.GGMLQuantizationType[kind]
        if kind == "F32":
            writer.add_tensor(name, values + 1 if len(shape) == 1 else values)
        else:
            writer.add_tensor(name, gguf.quantize(values, number), raw_dtype=number)

    kv = KV_HEADS * (D_MODEL // HEADS)
    add("token_embd.weight", (len(tokens), D_MODEL), table)
    add("output_norm.weight", (D_MODEL,), "F32")
    for i in range(LAYERS):
        add(f"blk.{i}.attn_q.weight", (D_MODEL, D_MODEL), kind, HEADS)
        add(f"blk.{i}.attn_k.weight", (kv, D_MODEL), kind, KV_HEADS)
        add(f"blk.{i}.attn_v.weight", (kv, D_MODEL), kind)
        add(f"blk.{i}.attn_output.weight", (D_MODEL, D_MODEL), kind)
        add(f"blk.{i}.ffn_gate.weight", (D_FF, D_MODEL), kind)
        add(f"blk.{i}.ffn_up.weight", (D_FF, D_MODEL), kind)
        add(f"blk.{i}.ffn_down.weight", (D_MODEL, D_FF), kind)
        for norm_name in ("attn_norm", "ffn_norm"):
            add(f"blk.{i}.{norm_name}.weight", (D_MODEL,), norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
