"""ReLU and its square: pass what is positive.

Nair & Hinton 2010, "Rectified Linear Units Improve Restricted Boltzmann Machines"; squared by So et
al. 2021, "Primer: Searching for Efficient Transformers for Language Modeling", arXiv:2109.08668,
section 3.1:

    relu(x) = max(0, x),    relu2(x) = max(0, x)^2

| paper | here |
|---|---|
| rectified linear units | `relu` |
| Squared ReLU | `relu2` |
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
