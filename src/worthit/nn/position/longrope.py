"""LongRoPE: a searched stretch for every pair, one set within the trained context, one beyond.

Ding et al. 2024, "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens",
arXiv:2402.13753, equation 2:

    angle(n, i) = n / (lambda_i theta^(2i/d))

| paper | here |
|---|---|
| lambda_i, one rescale factor a pair | `short_factors`; `long_factors` beyond the trained length |
| L, s | `original_context_len`, `factor` |

The factor on cos and sin, sqrt(1 + ln s / ln L), is that of the released Phi-3 configurations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worthit.nn.position.rope import base_frequencies
from worthit.spec.model import PositionScaling


def stretch(
    scaling: PositionScaling, rotary_dim: int, theta: float, length: int
) -> tuple[Tensor, float]:
    """Every frequency divided by its own factor: the long set beyond the trained context."""
    known = scaling.original_context_len
    factors = scaling.long_factors if length > known else scaling.short_factors
    freqs = base_frequencies(rotary_dim, theta) / torch.tensor(factors, dtype=torch.float32)
    if scaling.attention_factor is not None:
        return freqs, scaling.attention_factor
    if scaling.factor <= 1:
        return freqs, 1.0
    return freqs, math.sqrt(1 + math.log(scaling.factor) / math.log(known))
