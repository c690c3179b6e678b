"""Position interpolation: squeeze long positions into the trained range.

Chen et al. 2023, "Extending Context Window of Large Language Models via Positional Interpolation",
arXiv:2306.15595, equation 4:

    f'(x, m) = f(x, m L / L')

| paper | here |
|---|---|
| f(x, m), x turned by position m | `worthit.nn.position.rope.rotate` |
| L, L' | `original_context_len`, and `factor` times it |

Dividing positions by s = L'/L is dividing
every frequency by s.
"""

from __future__ import annotations

from torch import Tensor

from worthit.nn.position.rope import base_frequencies
from worthit.spec.model import PositionScaling


def stretch(
    scaling: PositionScaling, rotary_dim: int, theta: float, length: int
) -> tuple[Tensor, float]:
    """Every frequency divided by the factor; the length does not matter."""
    return base_frequencies(rotary_dim, theta) / scaling.factor, 1.0
