"""Tiny `.gguf` files of random checkpoints, as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

Config = dict[str, Any]
Arrays = dict[str, np.ndarray]

BASE: Config = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
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
SIZES = {"block_count": 2, "embedding_length": 32, "feed_forward_length": 48, "vocab_size": 40}
HEADS = {"attention.head_count": 4, "attention.head_count_kv": 2, "context_length": 128}
RMS = {**HEADS, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10_000.0}


def reference(model_type: str, config: Config) -> Any:
    torch.manual_seed(0)
    known = transformers.AutoConfig.for_model(model_type, **config)
    model = transformers.AutoModelForCausalLM.from_config(known, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.15)
            if name.endswith("A_log"):  # a decay rate, within what states survive
                parameter.uniform_(-1.0, 1.0)
    return model.float().eval()


def in_pairs(tensor: Any, n_heads: int) -> Any:
    """What llama.cpp's converter does to the rows of queries and keys, by its own formula."""
    halves = tensor.reshape(n_heads, 2, tensor.shape[0] // n_heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def is_converted(data: np.ndarray, kind: str) -> bool:
    """Blocks are of 32 numbers of a row; vectors stay as they are."""
    return data.ndim > 1 and kind != "F32" and data.shape[-1] % 32 == 0


def write(path: Path, arch: str, meta: Config, tensors: Arrays, kind: str = "F32") -> Path:
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {**SIZES, **meta}.items():
        add = {
            int: writer.add_uint32,
            float: writer.add_float32,
            bool: writer.add_bool,
            str: writer.add_string,
            list: writer.add_array,
        }
        add[type(value)](f"{arch}.{key}", value)
    number = gguf.GGMLQuantizationType[kind]
    for name, data in tensors.items():
        if not is_converted(data, kind):
            writer.add_tensor(name, data)
        else:
            writer.add_tensor(name, gguf.quantize(data, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
