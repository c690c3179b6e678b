"""DELLA: drop entries at random, small ones more often than large ones.

    p_r = (density - epsilon) + 2 epsilon (r - 1) / (n - 1)

An entry of magnitude rank `r` among the `n` of its row, 1 the smallest, stays with chance `p_r`:
`density` on average, `density +- epsilon` at the ends. The paper writes drop rates, `1 - p`. What
stays is enlarged and joined as in DARE; `elect` is the paper's second step (TIES's election).

Departures: what stays is rescaled by the share of the L1 norm kept (`rescale="l1"`, as `mergekit`
does) instead of by each entry's own `p_r`; a row is the last axis of a tensor of any rank.

Source:
    Deep et al. 2024, "DELLA-Merging: Reducing Interference in Model Merging through
    Magnitude-Based Sampling", arXiv:2406.11617, section 3 (MAGPRUNE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from worthit.errors import InputError
from worthit.merge.stack import Stack, in_memory
from worthit.merge.thinning import Rescale, generator, join, mask


def della(
    base: Tensor,
    tensors: Sequence[Tensor],
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    epsilons: Sequence[float],
    seed: int = 0,
    rescale: Rescale = "l1",
    scale: float = 1.0,
    normalize: bool = True,
    elect: bool = True,
) -> Tensor:
    """`base` plus task vectors thinned by magnitude, joined by election or (`elect=False`) by sum.

    Raises:
        InputError: a density that `epsilon` takes out of (0, 1).
    """
    return in_memory(
        merge,
        tensors,
        base,
        weights=weights,
        densities=densities,
        epsilons=epsilons,
        seed=seed,
        rescale=rescale,
        scale=scale,
        normalize=normalize,
        elect=elect,
    )


def merge(
    stack: Stack,
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    epsilons: Sequence[float],
    seed: int = 0,
    rescale: Rescale = "l1",
    scale: float = 1.0,
    normalize: bool = True,
    elect: bool = True,
) -> Iterator[Tensor]:
    """The merged rows of `stack`; see `della`."""
    for density, epsilon in zip(densities, epsilons, strict=True):
        check(density, epsilon)

    def thinned(index: int) -> Callable[[Tensor], Tensor]:
        density, epsilon = densities[index], epsilons[index]
        if density >= 1:
            return lambda delta: delta
        if density <= 0:
            return lambda delta: torch.zeros_like(delta)
        chance = generator(seed, stack.name, index)
        return lambda delta: delta.mul(mask(delta.shape, keeps(delta, density, epsilon), chance))

    yield from join(stack, thinned, densities, weights, rescale, scale, normalize, elect)


def keeps(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """The chance with which each entry of `(n_rows, n_columns)` stays."""
    n = delta.shape[-1]
    order = delta.abs().argsort(dim=-1)
    rank = torch.empty_like(delta)
    rank.scatter_(-1, order, torch.arange(n, dtype=delta.dtype).expand_as(delta))
    step = 2 * epsilon / (n - 1) if n > 1 else 0.0
    return rank.mul_(step).add_(density - epsilon if n > 1 else density)


def check(density: float, epsilon: float) -> None:
    """Raise `InputError` where some entries would stay with a chance outside (0, 1)."""
    if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
        raise InputError(
            f"density - epsilon and density + epsilon must lie between 0 and 1, got density="
            f"{density} and epsilon={epsilon}; lower epsilon below {min(density, 1 - density):.3g}"
        )
