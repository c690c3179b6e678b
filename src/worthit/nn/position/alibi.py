"""ALiBi: no positions at all, but a penalty on scores that grows with distance.

Press, Smith & Lewis 2021, "Train Short, Test Long: Attention with Linear Biases Enables Input
Length Extrapolation", arXiv:2108.12409, section 3:

    score(i, j) = q_i k_j - m_h (i - j),    m_h = 2^(-8h/H),    h = 1..H

| paper | here |
|---|---|
| m, the slopes | `slopes(n_heads)` |
| -m (i - j) | `bias`, m j: see below |

Where H is no power of two, the slopes of the next lower power and then every second one of the next
higher (the authors' code).
Adding m_h j instead of -m_h (i - j) changes a whole row by a constant, which softmax ignores.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def slopes(n_heads: int) -> Tensor:
    """The slope of each head, `(n_heads,)`, fp32."""
    power = 2 ** math.floor(math.log2(n_heads))
    own = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    finer = [2 ** (-4 * h / power) for h in range(1, 2 * power + 1, 2)]
    return torch.tensor(own + finer[: n_heads - power])


def bias(n_heads: int, key_positions: Tensor) -> Tensor:
    """What to add to scores, `(batch, n_heads, 1, keys)`, from `(batch, keys)` positions."""
    m = slopes(n_heads).to(key_positions.device)
    return m[None, :, None, None] * key_positions[:, None, None, :].float()
