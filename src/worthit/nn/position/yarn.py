"""YaRN: interpolate slow frequencies, keep fast ones, and sharpen the attention.

Peng et al. 2023, "YaRN: Efficient Context Window Extension of Large Language Models",
arXiv:2309.00071, definition 2 and equations 17-22. For a frequency f that turns r times over the
trained context

    f' = (1 - gamma(r)) f / s + gamma(r) f,    gamma(r) = (r - alpha) / (beta - alpha) in [0, 1]

| paper | here |
|---|---|
| s | `factor` |
| alpha, beta | `beta_slow`, `beta_fast`: rotations over the trained context that bound the ramp |
| gamma(r) | 1 - `interpolated`; linear in the pair's number, as in the authors' code, not in r |
| sqrt(1/t) = 0.1 ln s + 1 | the factor on cos and sin, hence squared in the scores |
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
    """Frequencies blended pair by pair, and the temperature; the length does not matter."""
    freqs = base_frequencies(rotary_dim, theta)
    first = pair_of_rotations(scaling.beta_fast, rotary_dim, theta, scaling.original_context_len)
    last = pair_of_rotations(scaling.beta_slow, rotary_dim, theta, scaling.original_context_len)
    if scaling.is_truncated:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    if first == last:
        # A ramp of no width would divide by zero.
        last += 0.001
    pairs = torch.arange(rotary_dim // 2, dtype=torch.float32)
    interpolated = ((pairs - first) / (last - first)).clamp(0, 1)
    return torch.lerp(freqs, freqs / scaling.factor, interpolated), temperature(scaling)


def pair_of_rotations(rotations: float, rotary_dim: int, theta: float, context_len: int) -> float:
    """The pair, as a real number, that turns `rotations` times over the context (equation 17)."""
    return rotary_dim * math.log(context_len / (rotations * 2 * math.pi)) / (2 * math.log(theta))


def temperature(scaling: PositionScaling) -> float:
    """sqrt(1/t); DeepSeek divides by a second one, which it puts into the scores instead."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        above = log_factor(scaling.factor, scaling.mscale)
        return above / log_factor(scaling.factor, scaling.mscale_all_dim)
    return log_factor(scaling.factor, 1.0)


def log_factor(factor: float, weight: float) -> float:
    """0.1 w ln s + 1 (equation 22), 1 where nothing is stretched."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
