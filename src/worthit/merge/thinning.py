"""What methods that drop entries by chance share: the chance itself, the mask, what follows it.

Which entries drop is decided by seed, tensor and model, not by the order of the work: a merge that
was interrupted, or that reads its tensors in another order, drops the same. What stays is rescaled,
and joined by addition or by the election of TIES. DARE and DELLA differ in the chance alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from worthit.merge.stack import Stack
from worthit.merge.task_arithmetic import weighted_sum
from worthit.merge.ties import elected

Rescale = Literal["l1", "density", "none"]
# Norms below this are not divided by.
LEAST_NORM = 1e-7
# A random number of 16 bits decides: densities are exact to 1 in 65,536.
N_LEVELS = 1 << 16


def join(
    stack: Stack,
    thinned: Callable[[int], Callable[[Tensor], Tensor]],
    densities: Sequence[float],
    weights: Sequence[float],
    rescale: Rescale,
    scale: float,
    normalize: bool,
    elect: bool,
) -> Iterator[Tensor]:
    """Thin the task vectors, rescale and join them.

    Args:
        thinned: by the index of a model, a fresh function that thins its pieces in order.
    """
    factors = [_factor(stack, i, density, thinned, rescale) for i, density in enumerate(densities)]
    thin = [thinned(i) for i in range(len(weights))]
    combine = elected if elect else weighted_sum
    for base, deltas in stack.task_vectors():
        sparse = [t(d) for t, d in zip(thin, deltas, strict=True)]
        for tau, factor in zip(sparse, factors, strict=True):
            if factor != 1:
                tau *= factor
        yield base + scale * combine(sparse, weights, normalize)


def generator(seed: int, name: str, index: int) -> np.random.Generator:
    """The source of chance for one tensor of one model."""
    digest = hashlib.sha256(f"{seed}/{index}/{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def mask(shape: torch.Size, density: float | Tensor, chance: np.random.Generator) -> Tensor:
    """Ones with chance `density` (a number, or one for each entry) and zeros, in fp32."""
    levels = np.frombuffer(chance.bytes(2 * shape.numel()), dtype=np.uint16)
    drawn = torch.from_numpy(levels.astype(np.float32)).reshape(shape)
    return (drawn < density * N_LEVELS).to(torch.float32)


def _factor(
    stack: Stack,
    index: int,
    density: float,
    thinned: Callable[[int], Callable[[Tensor], Tensor]],
    rescale: Rescale,
) -> float:
    """What a thinned task vector is multiplied by."""
    if rescale == "none" or density >= 1 or density <= 0:
        return 1.0
    if rescale == "density":
        return 1 / density
    thin = thinned(index)
    before = after = 0.0
    for delta in stack.task_vector(index):
        before += float(delta.abs().sum(dtype=torch.float64))
        after += float(thin(delta).abs().sum(dtype=torch.float64))
    return before / after if min(before, after) >= LEAST_NORM else 1.0
