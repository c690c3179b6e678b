"""Small checkpoints and recipes that every test of merging shares, from NumPy's frozen stream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

N_LAYERS, HIDDEN, VOCAB = 3, 8, 12
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
SEEDS = {"base": 1, "a": 2, "b": 3, "c": 4}
# How far a fine-tuned checkpoint is from the base; large, so that nothing hides in rounding.
STEP = 0.3


def shapes(n_layers: int = N_LAYERS, vocab: int = VOCAB) -> dict[str, tuple[int, ...]]:
    """Every tensor of a small Llama."""
    made: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, HIDDEN)}
    for i in range(n_layers):
        at = f"model.layers.{i}."
        made |= {
            f"{at}input_layernorm.weight": (HIDDEN,),
            f"{at}self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{at}self_attn.k_proj.weight": (HIDDEN // 2, HIDDEN),
            f"{at}self_attn.v_proj.weight": (HIDDEN // 2, HIDDEN),
            f"{at}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{at}post_attention_layernorm.weight": (HIDDEN,),
            f"{at}mlp.gate_proj.weight": (2 * HIDDEN, HIDDEN),
            f"{at}mlp.up_proj.weight": (2 * HIDDEN, HIDDEN),
            f"{at}mlp.down_proj.weight": (HIDDEN, 2 * HIDDEN),
        }
    made |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (vocab, HIDDEN)}
    return made


def tensors(name: str, n_layers: int = N_LAYERS, vocab: int = VOCAB) -> dict[str, Tensor]:
    """The weights of `base`, or of `a`, `b`, `c`: the base with something added."""
    made = _drawn(SEEDS["base"], n_layers, vocab)
    if name != "base":
        step = _drawn(SEEDS[name], n_layers, vocab)
        made = {key: value + STEP * step[key] for key, value in made.items()}
    return made


def _drawn(seed: int, n_layers: int, vocab: int) -> dict[str, Tensor]:
    stream = np.random.RandomState(seed)
    return {
        name: torch.from_numpy(stream.standard_normal(shape).astype(np.float32))
        for name, shape in shapes(n_layers, vocab).items()
    }


def write(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps({**(CONFIG if config is None else config), **changes})
    (folder / "config.json").write_text(text)
    return folder


def write_all(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """`base`, `a`, `b` and `c` below a folder."""
    for name in SEEDS:
        write(folder / name, {k: v.to(dtype) for k, v in tensors(name).items()})
    return folder


# Recipes of every method, with what recipes have: gradients, filters, slices, formats.
RECIPES: dict[str, str] = {
    "linear": """
merge_method: linear
models:
  - model: a
    parameters: {weight: [0.2, 0.9]}
  - model: b
    parameters: {weight: 0.5}
dtype: float32
""",
    "linear-not-normalized": """
merge_method: linear
models:
  - {model: a, parameters: {weight: 0.7}}
  - {model: b, parameters: {weight: -0.4}}
  - {model: c, parameters: {weight: 1e-1}}
parameters: {normalize: false}
""",
    "task_arithmetic": """
merge_method: task_arithmetic
base_model: base
models:
  - model: a
    parameters:
      weight:
        - {filter: mlp, value: [0.1, 0.4, 0.8]}
        - {filter: self_attn, value: 0.3}
        - {value: 0.9}
  - model: b
    parameters: {weight: -0.6}
parameters: {lambda: 0.7}
""",
    "slerp": """
merge_method: slerp
base_model: a
slices:
  - sources:
      - {model: a, layer_range: [0, 3]}
      - {model: b, layer_range: [0, 3]}
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - {value: 0.5}
""",
    "ties": """
merge_method: ties
base_model: base
models:
  - model: base
  - model: a
    parameters: {weight: [0.2, 0.9], density: 0.5}
  - model: b
    parameters: {weight: 0.5, density: [{filter: mlp, value: 0.3}, {value: 0.7}]}
  - model: c
    parameters: {weight: 0.8, density: 0.25}
parameters: {int8_mask: true}
""",
    "ties-not-normalized": """
merge_method: ties
base_model: base
models:
  - {model: a, parameters: {weight: 0.5}}
  - {model: b, parameters: {weight: -0.5}}
parameters: {density: [0.9, 0.2], normalize: false, lambda: 1.5}
""",
    "dare_ties": """
merge_method: dare_ties
base_model: base
models:
  - {model: a, parameters: {weight: 0.6, density: 0.5}}
  - {model: b, parameters: {weight: 0.4, density: [0.8, 0.2]}}
  - {model: c, parameters: {weight: 0.4}}
""",
    "dare_linear": """
merge_method: dare_linear
base_model: base
models:
  - {model: a, parameters: {weight: 0.6, density: 0.5}}
  - {model: b, parameters: {weight: 0.4, density: 0.3}}
parameters: {rescale: false, normalize: true}
""",
    "della": """
merge_method: della
base_model: base
models:
  - {model: a, parameters: {weight: 0.6, density: 0.5, epsilon: 0.2}}
  - {model: b, parameters: {weight: 0.4, density: 0.7}}
""",
    "della_linear": """
merge_method: della_linear
base_model: base
models:
  - {model: a, parameters: {weight: 0.6, density: 0.4}}
  - {model: b, parameters: {weight: 0.4, density: 0.6, epsilon: 0.1}}
parameters: {lambda: 0.9}
""",
    "breadcrumbs": """
merge_method: breadcrumbs
base_model: base
models:
  - {model: a, parameters: {weight: 0.6, density: 0.5, gamma: 0.1}}
  - {model: b, parameters: {weight: 0.4, density: 0.95, gamma: 0.2}}
""",
    "breadcrumbs_ties": """
merge_method: breadcrumbs_ties
base_model: base
models:
  - {model: a, parameters: {weight: 0.6, density: 0.6}}
  - {model: b, parameters: {weight: 0.4, density: 0.4, gamma: 0.05}}
""",
    "model_stock": """
merge_method: model_stock
base_model: base
models:
  - model: a
  - model: b
  - model: c
""",
    "model_stock-by-row": """
merge_method: model_stock
base_model: base
models: [{model: a}, {model: b}]
parameters: {filter_wise: true}
""",
    "passthrough": """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources:
      - model: b
        layer_range: [1, 3]
        parameters:
          scale:
            - {filter: o_proj, value: 0.0}
            - {filter: down_proj, value: [0.5, 0.25]}
            - {value: 1.0}
""",
    "slices-of-ties": """
merge_method: ties
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: 1.0}}
      - {model: b, layer_range: [1, 3], parameters: {weight: [0.5, 1.0]}}
      - {model: base, layer_range: [0, 2]}
    parameters: {density: 0.6}
    base_model: base
  - sources:
      - {model: c, layer_range: [2, 3], parameters: {weight: [0.1, 0.9]}}
      - {model: base, layer_range: [2, 3]}
    base_model: base
""",
    "formats": """
merge_method: task_arithmetic
base_model: base
models:
  - {model: a, parameters: {weight: 0.5}}
  - {model: b, parameters: {weight: 0.5}}
dtype: float32
out_dtype: bfloat16
""",
}
