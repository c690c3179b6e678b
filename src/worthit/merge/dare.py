"""DARE: drop entries of each task vector at random, and enlarge what stays.

    m ~ Bernoulli(density)          tau' = m * tau / density

The paper's drop rate is `1 - density`. What stays is joined by addition (`dare_linear`) or by the
election of TIES (`dare_ties`).

Departures, named because results differ:
- `rescale="l1"` divides by the share of the L1 norm that was kept, as `mergekit` does, instead of
  by `density`; the two agree in expectation. `"density"` is the paper, `"none"` leaves it out.
- Which entries drop is decided by seed, tensor and model, not by the order of the work: a merge
  that was interrupted, or that reads its tensors in another order, drops the same.

Source:
    Yu et al. 2023, "Language Models are Super Mario: Absorbing Abilities from Homologous Models as
    a Free Lunch", arXiv:2311.03099, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from worthit.merge.stack import Stack, in_memory
from worthit.merge.thinning import Rescale, generator, join, mask


def dare_linear(
    base: Tensor,
    tensors: Sequence[Tensor],
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    seed: int = 0,
    rescale: Rescale = "l1",
    scale: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    """`base` plus the weighted sum of randomly thinned task vectors."""
    return in_memory(
        merge,
        tensors,
        base,
        weights=weights,
        densities=densities,
        seed=seed,
        rescale=rescale,
        scale=scale,
        normalize=normalize,
    )


def dare_ties(
    base: Tensor,
    tensors: Sequence[Tensor],
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    seed: int = 0,
    rescale: Rescale = "l1",
    scale: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    """`base` plus the elected mean of randomly thinned task vectors."""
    return in_memory(
        merge,
        tensors,
        base,
        weights=weights,
        densities=densities,
        seed=seed,
        rescale=rescale,
        scale=scale,
        normalize=normalize,
        elect=True,
    )


def merge(
    stack: Stack,
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    seed: int = 0,
    rescale: Rescale = "l1",
    scale: float = 1.0,
    normalize: bool = False,
    elect: bool = False,
) -> Iterator[Tensor]:
    """The merged rows of `stack`; see `dare_linear` and `dare_ties`."""

    def thinned(index: int) -> Callable[[Tensor], Tensor]:
        density = densities[index]
        if density >= 1:
            return lambda delta: delta
        chance = generator(seed, stack.name, index)
        return lambda delta: delta.mul(mask(delta.shape, density, chance))

    yield from join(stack, thinned, densities, weights, rescale, scale, normalize, elect)
