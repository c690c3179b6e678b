"""SwiGLU: one projection decides how much of another passes.

Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202, equation 6:

    FFN(x) = (Swish(x W) * x V) W2

| paper | here |
|---|---|
| W, V | the halves of `up`: gate, then value |
| W2 | `down` |

GeGLU replaces Swish by GELU. gpt-oss clamps both halves, sharpens the gate (1.702) and adds 1 to
the value: `clamped_swish`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# The sigmoid's slope with which x sigmoid(1.702 x) approximates GELU (Hendrycks & Gimpel 2016).
GELU_SLOPE = 1.702


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), Swish with slope 1."""
    return functional.silu(x)


def clamped_swish(gate: Tensor, value: Tensor, limit: float) -> Tensor:
    """g sigmoid(1.702 g) (u + 1), with g held below `limit` and u within +-`limit` (gpt-oss)."""
    g, u = gate.clamp(max=limit), value.clamp(-limit, limit)
    return g * torch.sigmoid(GELU_SLOPE * g) * (u + 1)
