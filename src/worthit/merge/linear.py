"""Linear merging: the weighted mean of checkpoints, a model soup.

    theta = sum_i w_i theta_i / sum_i w_i

The paper's soups weigh all ingredients alike; weights of one's own, and leaving out the division
(`normalize=False`), are how practice went on. There is no base: a model listed as one is an
ingredient like the others.

Source:
    Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves
    accuracy without increasing inference time", arXiv:2203.05482, section 2 (uniform soup).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from worthit.errors import InputError
from worthit.merge.stack import Stack, in_memory


def linear(
    tensors: Sequence[Tensor], *, weights: Sequence[float], normalize: bool = True
) -> Tensor:
    """The weighted mean of `tensors`, all of one shape.

    Raises:
        InputError: weights that sum to zero, where they are to be normalized.
    """
    return in_memory(merge, tensors, weights=weights, normalize=normalize)


def merge(stack: Stack, *, weights: Sequence[float], normalize: bool = True) -> Iterator[Tensor]:
    """The merged rows of `stack`; see `linear`."""
    total = sum(weights) if normalize else 1.0
    if total == 0:
        raise InputError(
            f"weights must not sum to 0 where they are normalized, got {list(weights)}; change "
            "one, or set normalize to false"
        )
    for tensors in stack.pieces():
        mixed = torch.mul(tensors[0], weights[0])
        for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
            mixed.add_(tensor, alpha=weight)
        yield mixed if total == 1 else mixed.div_(total)
