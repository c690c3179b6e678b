"""ReLU and its square: pass what is positive.

max(0, x); squared by So et al. 2021, "Primer: Searching for Efficient Transformers for Language
Modeling", arXiv:2109.08668, section 3.1.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def relu(x: Tensor) -> Tensor:
    """max(0, x)."""
    return functional.relu(x)


def relu2(x: Tensor) -> Tensor:
    """max(0, x)^2."""
    return functional.relu(x).square()
