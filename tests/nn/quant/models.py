"""Models small enough to quantize in a test."""

from __future__ import annotations

from typing import Any

import torch

from worthit.nn.decoder import Decoder, build
from worthit.spec.hf import from_config

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MODELS: dict[str, dict[str, Any]] = {
    "tied": {"model_type": "llama", **SIZES, "tie_word_embeddings": True},
    "biases": {"model_type": "qwen2", **SIZES, "tie_word_embeddings": False},
    "experts": {
        "model_type": "qwen3_moe",
        **SIZES,
        "head_dim": 16,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    },
    "offset norm": {"model_type": "gemma", **SIZES, "head_dim": 16},
    "layer norm": {
        "model_type": "stablelm",
        **SIZES,
        "tie_word_embeddings": False,
        "use_parallel_residual": False,
    },
    "parallel": {
        "model_type": "cohere",
        **SIZES,
    },
    "gated attention": {"model_type": "olmo2", **SIZES},
    "no attention": {
        "model_type": "mamba",
        "vocab_size": 96,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "state_size": 4,
    },
}


def made(kind: str = "tied", dtype: torch.dtype = torch.bfloat16) -> Decoder:
    torch.manual_seed(0)
    model = build(from_config(MODELS[kind]))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.to(dtype).eval()


IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
