"""NTK-aware scaling: stretch slow frequencies, leave fast ones; and its relatives.

bloc97 2023, "NTK-Aware Scaled RoPE", as written down in Peng et al. 2023, "YaRN", arXiv:2309.00071,
section 3.1:

    theta' = theta s^(d / (d - 2)),    frequency_i = theta'^(-2i/d)

| paper | here |
|---|---|
| b, b' | `theta`, `base` |
| s = L'/L | `factor` |
| d | `rotary_dim` |

Then the lowest frequency is divided by s exactly and the highest is untouched.

- `stretch_dynamically` (section 3.3): s follows the length once it passes the trained context. Keys
  that were cached under an earlier base keep it.
- `stretch_by_wavelength` (Llama 3, Grattafiori et al. 2024, arXiv:2407.21783, section 3.4.2, with
  the constants of its released configuration): long waves are divided by s, short ones kept, and
  those in between blended.
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
    """Frequencies of a base enlarged once and for all."""
    base = theta * scaling.factor ** (rotary_dim / (rotary_dim - 2))
    return base_frequencies(rotary_dim, base), 1.0


def stretch_dynamically(
    scaling: PositionScaling, rotary_dim: int, theta: float, length: int
) -> tuple[Tensor, float]:
    """Frequencies of a base that grows with the length: s = f n / L - (f - 1) for n > L."""
    known = scaling.original_context_len
    n = max(length, known)
    s = scaling.factor * n / known - (scaling.factor - 1)
    return base_frequencies(rotary_dim, theta * s ** (rotary_dim / (rotary_dim - 2))), 1.0


def stretch_by_wavelength(
    scaling: PositionScaling, rotary_dim: int, theta: float, length: int
) -> tuple[Tensor, float]:
    """Llama 3's: kept, divided, or blended by how many waves fit the trained context."""
    freqs = base_frequencies(rotary_dim, theta)
    waves = scaling.original_context_len / (2 * math.pi / freqs)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((waves - low) / (high - low)).clamp(0, 1)
    return torch.lerp(freqs / scaling.factor, freqs, kept), 1.0
