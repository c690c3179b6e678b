"""Model breadcrumbs: a sparse task vector without its smallest entries and without its outliers.

    theta = theta_0 + alpha sum_i m_i * tau_i

`m_i` keeps, of each layer's task vector, the magnitudes between two quantiles: the share `gamma` of
the largest goes, and of the rest the largest stay until the share `density` is kept. The paper's
alpha is `scale`, its beta and gamma are the two quantiles. `elect=True` joins the sparse vectors by
the election of TIES; the paper adds them.

Source:
    Davari and Belilovsky 2023, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse
    Masks", arXiv:2312.06795, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from worthit.merge.magnitude import Band, band
from worthit.merge.stack import Stack, in_memory
from worthit.merge.task_arithmetic import weighted_sum
from worthit.merge.ties import elected, trim


def breadcrumbs(
    base: Tensor,
    tensors: Sequence[Tensor],
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    gammas: Sequence[float],
    scale: float = 1.0,
    normalize: bool = False,
    elect: bool = False,
) -> Tensor:
    """`base` plus the weighted task vectors of `tensors`, each masked at both ends."""
    return in_memory(
        merge,
        tensors,
        base,
        weights=weights,
        densities=densities,
        gammas=gammas,
        scale=scale,
        normalize=normalize,
        elect=elect,
    )


def merge(
    stack: Stack,
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    gammas: Sequence[float],
    scale: float = 1.0,
    normalize: bool = False,
    elect: bool = False,
) -> Iterator[Tensor]:
    """The merged rows of `stack`; see `breadcrumbs`."""
    join = elected if elect else weighted_sum
    pairs = zip(densities, gammas, strict=True)
    kept = [middle(stack, i, density, gamma) for i, (density, gamma) in enumerate(pairs)]
    for base, deltas in stack.task_vectors():
        sparse = [trim(delta, k) for delta, k in zip(deltas, kept, strict=True)]
        yield base + scale * join(sparse, weights, normalize)


def middle(stack: Stack, index: int, density: float, gamma: float) -> Band | float:
    """The band that a model keeps: the share `density` below the share `gamma` of the largest.

    Where both do not fit into one tensor, fewer outliers go: the density is what is promised.
    """
    if density >= 1 or not stack.numel:
        return 1.0
    n_kept = int(density * stack.numel)
    low = max(0, stack.numel - n_kept - int(gamma * stack.numel))
    found = band(lambda: stack.task_vector(index), stack.numel, low, low + n_kept)
    return 0.0 if found is None else found
