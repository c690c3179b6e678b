"""Model stock: how far to go from the base towards the mean, read off the angle between models.

    t = k cos(w) / (1 + (k - 1) cos(w))          theta = t mean_i(theta_i) + (1 - t) theta_0

Fine-tuned models lie on a thin shell around a centre, at right angles seen from it; the point of
the base's line nearest to that centre needs only `w`, the angle between two task vectors. The
paper's `k` is the number of models, here with the mean cosine over all pairs; `w_0` is the base.

Departures, both as practice has them: one angle a tensor (the paper's layer), or one a row with
`by_row`; and lengths whose product is below `LEAST_PRODUCT` count as having that product, which
keeps small tensors such as norms near the base.

Source:
    Jang et al. 2024, "Model Stock: All we need is just a few fine-tuned models", arXiv:2403.19522,
    equation 2 (t for k = 2) and its generalisation to k models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from worthit.merge.stack import Stack, in_memory

LEAST_PRODUCT = 1e-6
# Denominators nearer to zero than this have no finite answer: the base stays.
LEAST_DENOMINATOR = 1e-6


def model_stock(base: Tensor, tensors: Sequence[Tensor], *, by_row: bool = False) -> Tensor:
    """Between `base` and the mean of two or more `tensors`, at the share that the angle gives."""
    return in_memory(merge, tensors, base, by_row=by_row)


def merge(stack: Stack, *, by_row: bool = False) -> Iterator[Tensor]:
    """The merged rows of `stack`; see `model_stock`."""
    whole = None if by_row else share(_whole_products(stack), len(stack.models))
    for base, deltas in stack.task_vectors():
        t = share(products(deltas), len(deltas))[:, None] if whole is None else whole
        mean = torch.stack(deltas).mean(0)
        yield base + t.to(base.dtype) * mean


def products(deltas: Sequence[Tensor]) -> Tensor:
    """Every scalar product of two task vectors, row by row: `(k, k, n_rows)`, in fp64."""
    wide = [delta.double() for delta in deltas]
    return torch.stack([torch.stack([(a * b).sum(-1) for b in wide]) for a in wide])


def share(products: Tensor, k: int) -> Tensor:
    """The paper's `t` from the scalar products of `k` task vectors."""
    lengths = products.diagonal().sqrt()  # (..., k): the axes of the pairs come last
    cosines = [
        (products[i, j] / (lengths[..., i] * lengths[..., j]).clamp(min=LEAST_PRODUCT)).clamp(-1, 1)
        for i, j in combinations(range(k), 2)
    ]
    cosine = torch.stack(cosines).mean(0)
    denominator = 1 + (k - 1) * cosine
    is_finite = denominator.abs() >= LEAST_DENOMINATOR
    return torch.where(is_finite, k * cosine / torch.where(is_finite, denominator, 1.0), 0.0)


def _whole_products(stack: Stack) -> Tensor:
    total: Any = sum(products(deltas).sum(-1) for _, deltas in stack.task_vectors())
    return total
