"""TIES: trim each task vector, elect one sign an entry, and average those that agree.

    1 trim      tau_i: keep the share `density` of largest magnitude, zero for the rest
    2 elect     gamma = sgn(sum_i w_i tau_i)
    3 merge     tau = mean of w_i tau_i over the i whose sign is gamma

    theta = theta_0 + lambda tau

The paper has equal weights and `density` 0.2. With weights, as practice has them, the sign is that
of the weighted sum and the mean divides by the sum of the agreeing weights (`normalize=False`
leaves the division out). An entry whose sum is zero counts as positive.

Of magnitudes equal to the one at the cut, the last ones in the tensor stay.

Source:
    Yadav et al. 2023, "TIES-Merging: Resolving Interference When Merging Models",
    arXiv:2306.01708, section 3 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from worthit.merge.magnitude import Band, band
from worthit.merge.stack import Stack, in_memory


def ties(
    base: Tensor,
    tensors: Sequence[Tensor],
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    scale: float = 1.0,
    normalize: bool = True,
) -> Tensor:
    """`base` plus the trimmed, elected and averaged task vectors of `tensors`.

    Args:
        base: what the models were fine-tuned from.
        tensors: one of each model.
        weights: of the task vectors.
        densities: the share of entries that each keeps.
        scale: the paper's lambda.
        normalize: divide by the sum of the agreeing weights.
    """
    return in_memory(
        merge,
        tensors,
        base,
        weights=weights,
        densities=densities,
        scale=scale,
        normalize=normalize,
    )


def merge(
    stack: Stack,
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    scale: float = 1.0,
    normalize: bool = True,
) -> Iterator[Tensor]:
    """The merged rows of `stack`; see `ties`."""
    kept = [largest(stack, i, density) for i, density in enumerate(densities)]
    for base, deltas in stack.task_vectors():
        trimmed = [trim(delta, k) for delta, k in zip(deltas, kept, strict=True)]
        yield base + scale * elected(trimmed, weights, normalize)


def largest(stack: Stack, index: int, density: float) -> Band | float:
    """The band of a model's largest entries, or `density` itself where it is 0 or 1."""
    if density >= 1 or density <= 0 or not stack.numel:
        return 1.0 if density > 0 else 0.0
    n_kept = max(1, int(density * stack.numel))
    found = band(lambda: stack.task_vector(index), stack.numel, stack.numel - n_kept, stack.numel)
    assert found is not None
    return found


def trim(delta: Tensor, kept: Band | float) -> Tensor:
    """`delta` with zeros for what is not kept."""
    if isinstance(kept, Band):
        return kept.keep(delta)
    return delta if kept else torch.zeros_like(delta)


def elected(deltas: Sequence[Tensor], weights: Sequence[float], normalize: bool) -> Tensor:
    """The disjoint mean: of the weighted entries that have the sign of their sum."""
    weighted = [delta * weight for delta, weight in zip(deltas, weights, strict=True)]
    total = weighted[0].clone()
    for tau in weighted[1:]:
        total += tau
    gamma = (total >= 0).to(total.dtype).mul_(2).sub_(1)
    mixed = torch.zeros_like(total)
    divisor = torch.zeros_like(total)
    for tau, weight in zip(weighted, weights, strict=True):
        # Multiplied by the elected sign, what agrees is positive.
        agreeing = tau.mul_(gamma).clamp_(min=0)
        mixed += agreeing
        if normalize:
            divisor.add_(agreeing.sign_(), alpha=weight)
    mixed *= gamma
    return mixed.div_(divisor.masked_fill_(divisor == 0, 1)) if normalize else mixed
