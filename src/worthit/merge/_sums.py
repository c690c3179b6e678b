"""Sums over samples of task vectors, from which `reading` tells lengths, angles and conflicts."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# The share of the largest entries among which signs are compared: the density of TIES's paper.
LARGEST = 0.2
# The part of norms and biases.
VECTORS = "norms and biases"


@dataclass(frozen=True)
class Piece:
    """A sample of one tensor: the same entries of the base (if there is one) and of every model.

    `weight` is how many entries of the tensor each one stands for.
    """

    part: str
    base: Tensor | None
    models: tuple[Tensor, ...]
    weight: float


class Sums:
    """What is summed over pieces; products are in fp64, and by part of the model.

    Args:
        n_models: the base not counted.
        kept_every: of so many entries one is kept for quantiles.

    Attributes:
        products: of two task vectors (of two models, where there is no base), `(k, k)` by part.
        of_base: squared length of the base by part.
        with_base, of_models: of the weights themselves, matrices alone.
        large: entries large in model i; `large_both` in i and j; `differing` of those, by sign.
        changed: entries that differ from the base; `numel` all.
        sizes: magnitudes of a sample of each task vector's entries, with their weights.
    """

    def __init__(self, n_models: int, kept_every: int = 1) -> None:
        k = n_models
        self.k = k
        self.kept_every = kept_every
        self.n_read = 0
        self.numel = 0.0
        self.products: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((k, k)))
        self.of_base: dict[str, float] = defaultdict(float)
        self.with_base = np.zeros(k)
        self.of_models = np.zeros((k, k))
        self.large = np.zeros(k)
        self.large_both = np.zeros((k, k))
        self.differing = np.zeros((k, k))
        self.changed = np.zeros(k)
        self.sizes: list[list[np.ndarray]] = [[] for _ in range(k)]
        self.weights: list[np.ndarray] = []

    def add(self, piece: Piece) -> None:
        """Add one piece."""
        n = piece.models[0].numel()
        self.n_read += n
        self.numel += n * piece.weight
        models = [m.flatten().double() for m in piece.models]
        gram = _gram(models) * piece.weight
        is_matrix = piece.part != VECTORS
        if is_matrix:
            self.of_models += gram
        if piece.base is None:
            self.products[piece.part] += gram
            return
        base = piece.base.flatten().double()
        self.of_base[piece.part] += float(base @ base) * piece.weight
        if is_matrix:
            self.with_base += [float(base @ m) * piece.weight for m in models]
        deltas = [m - base for m in models]
        self.products[piece.part] += _gram(deltas) * piece.weight
        self.changed += [float((d != 0).sum()) * piece.weight for d in deltas]
        self._add_signs(deltas, piece.weight)
        self._keep(deltas, piece.weight)

    def _add_signs(self, deltas: Sequence[Tensor], weight: float) -> None:
        large = [_is_large(d) for d in deltas]
        self.large += [float(mask.sum()) * weight for mask in large]
        for i, j in itertools.combinations(range(self.k), 2):
            both = large[i] & large[j]
            differ = both & (deltas[i].sign() != deltas[j].sign())
            self.large_both[i, j] += float(both.sum()) * weight
            self.differing[i, j] += float(differ.sum()) * weight

    def _keep(self, deltas: Sequence[Tensor], weight: float) -> None:
        """Keep evenly spaced entries, to read quantiles off."""
        for sizes, delta in zip(self.sizes, deltas, strict=True):
            sizes.append(delta[:: self.kept_every].abs().float().numpy())
        n = len(self.sizes[0][-1])
        self.weights.append(np.full(n, weight * deltas[0].numel() / n, dtype=np.float32))

    # What is read off

    @property
    def total(self) -> np.ndarray:
        """The products of all matrices together."""
        return sum((self.products[p] for p in self._parts), np.zeros((self.k, self.k)))

    @property
    def _parts(self) -> list[str]:
        """Vectors are left out where there are matrices: norms near 1 say nothing of a step."""
        return [p for p in self.products if p != VECTORS] or list(self.products)

    def length(self, index: int, part: str | None = None) -> float:
        """|tau| / |theta_0| of one model, in one part or in all."""
        products = self.total if part is None else self.products[part]
        parts = self._parts if part is None else [part]
        base = sum(self.of_base[p] for p in parts)
        return float(np.sqrt(products[index, index] / base)) if base > 0 else float("nan")

    def cosine(self, i: int, j: int, part: str | None = None) -> float:
        """Of two task vectors, in one part or in all; NaN where one of them is zero."""
        return _cosine(self.total if part is None else self.products[part], i, j)

    def cosine_of_models(self, i: int, j: int) -> float:
        """Of two checkpoints themselves."""
        return _cosine(self.of_models, i, j)

    def cosine_to_base(self, index: int) -> float:
        """Of a checkpoint and the base."""
        base = sum(length for part, length in self.of_base.items() if part != VECTORS)
        lengths = np.sqrt(base * self.of_models[index, index])
        return float(self.with_base[index] / lengths) if lengths > 0 else float("nan")

    def magnitudes(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A sample of a task vector's magnitudes, decreasing, with how many entries each is for."""
        sizes = np.concatenate(self.sizes[index])
        order = np.argsort(-sizes)
        return sizes[order], np.concatenate(self.weights)[order]


def _gram(vectors: Sequence[Tensor]) -> np.ndarray:
    stacked = torch.stack(list(vectors))
    found: np.ndarray = (stacked @ stacked.T).numpy()
    return found


def _cosine(products: np.ndarray, i: int, j: int) -> float:
    lengths = np.sqrt(products[i, i] * products[j, j])
    return float(products[i, j] / lengths) if lengths > 0 else float("nan")


def _is_large(delta: Tensor) -> Tensor:
    """The largest fifth of a tensor's entries, as TIES trims; zeros are never large."""
    size = delta.abs()
    n = max(1, int(LARGEST * size.numel()))
    cut = size.kthvalue(size.numel() - n + 1).values
    return (size >= cut) & (size > 0)
