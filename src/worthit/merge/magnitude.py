"""Which entries of a task vector are large: the exact k-th magnitude, without sorting.

Positive floats order as their bits do, so the value of a rank is found 16 bits at a time: count how
many magnitudes begin with each pattern, find the pattern in which the rank falls, and look into
that one alone. Each round is a pass over the tensor, a few rows in memory, and no entry is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

ROUND_BITS = 16
N_PATTERNS = 1 << ROUND_BITS
# Up to so many entries, looking at all of them costs less than counting patterns.
FEW = 1 << 16


@dataclass
class Band:
    """The entries whose magnitude has rank `low` to `high`, in increasing order.

    Of entries equal to the magnitude at an end, as many as its ranks take are in the band, the
    first ones in the tensor's order at the upper end and the last at the lower. Pieces must be
    asked for in order: `keep` counts the equals that it has met.

    Attributes:
        lowest, highest: magnitudes at the two ends.
        n_skipped: how many entries equal to `lowest` rank below the band.
        n_taken: how many entries equal to `highest` rank in it.
    """

    lowest: float
    highest: float
    n_skipped: int
    n_taken: int
    _seen: list[int] = field(default_factory=lambda: [0, 0])

    def keep(self, delta: Tensor) -> Tensor:
        """`delta` with zeros for what lies outside the band; a new tensor."""
        size = delta.abs()
        inside = (size > self.lowest).logical_and_(size < self.highest)
        if self.lowest == self.highest:
            self._take(
                inside, size == self.lowest, 0, self.n_skipped, self.n_skipped + self.n_taken
            )
        else:
            self._take(inside, size == self.lowest, 0, self.n_skipped, None)
            self._take(inside, size == self.highest, 1, 0, self.n_taken)
        return size.copy_(inside).mul_(delta)

    def _take(self, inside: Tensor, equal: Tensor, end: int, first: int, last: int | None) -> None:
        """Put equals number `first` to `last` inside, counted over all pieces."""
        n_equal = int(equal.sum())
        if not n_equal:
            return
        seen = self._seen[end]
        self._seen[end] += n_equal
        if seen >= first and (last is None or seen + n_equal <= last):
            inside |= equal
            return
        number = equal.flatten().cumsum(0).reshape(equal.shape) + (seen - 1)
        chosen = equal & (number >= first)
        inside |= chosen if last is None else chosen & (number < last)


def band(vector: Callable[[], Iterator[Tensor]], numel: int, low: int, high: int) -> Band | None:
    """The band of ranks `low` to `high` (exclusive) among the magnitudes of a tensor.

    Args:
        vector: gives the tensor's pieces, in order, each time it is called.
        numel: entries of the tensor.

    Returns:
        None for no ranks at all.
    """
    if high <= low:
        return None
    values_at = _values_of_few if numel <= FEW else _values_at
    (lowest, n_below), (highest, below_top) = values_at(vector, (low, high - 1))
    n_skipped = low - n_below
    n_taken = high - below_top
    if lowest == highest:
        n_taken -= n_skipped
    return Band(lowest=lowest, highest=highest, n_skipped=n_skipped, n_taken=n_taken)


def _values_of_few(
    vector: Callable[[], Iterator[Tensor]], ranks: tuple[int, ...]
) -> list[tuple[float, int]]:
    """As `_values_at`, with every entry in memory."""
    sizes = np.concatenate([piece.abs().numpy().ravel() for piece in vector()])
    placed = np.partition(sizes, ranks)
    values = [placed[rank] for rank in ranks]
    return [(float(value), int((sizes < value).sum())) for value in values]


def _values_at(
    vector: Callable[[], Iterator[Tensor]], ranks: tuple[int, ...]
) -> list[tuple[float, int]]:
    """The magnitude at each rank, and how many entries lie below it."""
    prefixes = [0] * len(ranks)
    below = [0] * len(ranks)
    shift = None
    is_double = False
    while shift is None or shift > 0:
        counts: dict[int, np.ndarray] = {}
        for piece in vector():
            is_double = piece.dtype == torch.float64
            if shift is None:
                shift = 64 if is_double else 32
            bits = piece.abs().view(torch.int64 if is_double else torch.int32).numpy().ravel()
            _count(bits, shift, prefixes, counts)
        assert shift is not None, "a tensor without pieces has no ranks"
        shift -= ROUND_BITS
        for i, rank in enumerate(ranks):
            so_far = np.cumsum(counts[prefixes[i]])
            pattern = int(np.searchsorted(so_far, rank - below[i], side="right"))
            below[i] += int(so_far[pattern - 1]) if pattern else 0
            prefixes[i] = prefixes[i] << ROUND_BITS | pattern
    dtype = np.float64 if is_double else np.float32
    whole = np.int64 if is_double else np.int32
    values = [float(np.array(prefix, dtype=whole).view(dtype)) for prefix in prefixes]
    return list(zip(values, below, strict=True))


def _count(
    bits: np.ndarray, shift: int, prefixes: list[int], counts: dict[int, np.ndarray]
) -> None:
    """Add to `counts`, by prefix, how often each next pattern follows it."""
    width = 64 if bits.dtype == np.int64 else 32
    below = shift - ROUND_BITS
    for prefix in dict.fromkeys(prefixes):
        chosen = bits if shift == width else bits[bits >> shift == prefix]
        patterns = chosen >> below if below else chosen
        found = np.bincount(patterns & (N_PATTERNS - 1), minlength=N_PATTERNS)
        counts[prefix] = counts[prefix] + found if prefix in counts else found
