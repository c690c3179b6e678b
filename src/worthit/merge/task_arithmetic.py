"""Task arithmetic: add the differences that fine-tuning made.

    tau_i = theta_i - theta_0          theta = theta_0 + lambda sum_i w_i tau_i

`tau_i` is a task vector, `theta_0` the base, `lambda` the paper's scaling coefficient. A negative
weight takes a skill away. `normalize` divides by the sum of the weights, which the paper does not.

Source:
    Ilharco et al. 2023, "Editing Models with Task Arithmetic", arXiv:2212.04089, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from worthit.merge.stack import Stack, in_memory

# Weights whose sum is nearer to zero than this are not divided by it: they were meant to cancel.
LEAST_SUM = 1e-8


def task_arithmetic(
    base: Tensor,
    tensors: Sequence[Tensor],
    *,
    weights: Sequence[float],
    scale: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    """`base` plus the weighted task vectors of `tensors`; `scale` is the paper's lambda."""
    return in_memory(merge, tensors, base, weights=weights, scale=scale, normalize=normalize)


def merge(
    stack: Stack, *, weights: Sequence[float], scale: float = 1.0, normalize: bool = False
) -> Iterator[Tensor]:
    """The merged rows of `stack`; see `task_arithmetic`."""
    for base, deltas in stack.task_vectors():
        yield base + scale * weighted_sum(deltas, weights, normalize)


def weighted_sum(deltas: Sequence[Tensor], weights: Sequence[float], normalize: bool) -> Tensor:
    """`sum_i w_i tau_i`, divided by `sum_i w_i` where that is wanted and not zero."""
    mixed = deltas[0] * weights[0]
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        mixed.add_(delta, alpha=weight)
    total = sum(weights)
    return mixed.div_(total) if normalize and abs(total) >= LEAST_SUM else mixed
