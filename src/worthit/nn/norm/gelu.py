"""GELU: weigh x by the chance that a standard normal is below it.

Hendrycks & Gimpel 2016, "Gaussian Error Linear Units (GELUs)", arXiv:1606.08415:

    GELU(x) = x Phi(x) ~ x / 2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))

| paper | here |
|---|---|
| Phi, the normal distribution's | the exact form, `gelu` |
| its approximation by tanh | `gelu_tanh` |

The two forms differ by up to 5e-4: a checkpoint needs the one it was trained with.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), by the error function."""
    return functional.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation."""
    return functional.gelu(x, approximate="tanh")
