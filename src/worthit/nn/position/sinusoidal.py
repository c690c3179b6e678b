"""Sinusoidal positions: a fixed wave for every pair of channels, added to the embedding.

Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762, section 3.5:

    PE(pos, 2i) = sin(pos / 10000^(2i/d)),    PE(pos, 2i+1) = cos(pos / 10000^(2i/d))

| paper | here |
|---|---|
| PE, d_model | `table`, `(..., d_model)`: added to the embedding |
| pos | `positions`, which start behind a row's padding |

Some libraries put all sines before all cosines, or divide by d/2 - 1; this is the paper's form.
"""

from __future__ import annotations

import torch
from torch import Tensor


def table(positions: Tensor, d_model: int) -> Tensor:
    """`(..., d_model)` waves at `positions`, fp32."""
    pairs = torch.arange(0, d_model, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() / 10_000 ** (pairs / d_model)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :d_model]
