"""An endless task: examples are drawn as they are needed, each belonging to one split for good.

What identifies an example, its *key*, is hashed, and the hash says its split: a tenth of all
examples is test, a tenth validation, the rest is for training. So no example of one split is ever
drawn for another, however many are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worthit.errors import InputError, unknown_name
from worthit.train.batch import IGNORE, Batch

N_BUCKETS = 10
BUCKETS = {"test": (0,), "validation": (1,), "train": tuple(range(2, N_BUCKETS))}
HELD_OUT_ROWS = 128
# Draws without a single fresh example, after which there are too few examples to split.
MOST_EMPTY_DRAWS = 50
# Odd numbers of 64 bits for a polynomial hash and its final mixing (any large odd ones will do).
_BASE, _MIX = 6364136223846793005, 2685821657736338717


@dataclass(frozen=True)
class Drawn:
    """Examples before they are told apart by split.

    Attributes:
        input_ids: `(rows, seq)`.
        targets: `(rows, seq)`, shifted; `IGNORE` where nothing is scored.
        keys: `(rows, n)`, int64: equal for two rows exactly where they are the same example.
        groups: `(rows,)`, indices into the labels of the task; None without groups.
    """

    input_ids: Tensor
    targets: Tensor
    keys: Tensor
    groups: Tensor | None = None


class Generated:
    """`Data` over an endless stream.

    Args:
        name: the task.
        vocab_size: tokens are below it.
        seq_len: of every row in training.
        draw: from a generator and a number of rows to that many examples.
        labels: what `Drawn.groups` are indices of.
        seed: draws the held-out rows.
        n_held_out: rows of each held-out split.
        other_splits: further held-out streams, such as longer sequences, by name: each is a
            `draw` whose test examples are taken.
    """

    def __init__(
        self,
        name: str,
        vocab_size: int,
        seq_len: int,
        draw: Callable[[torch.Generator, int], Drawn],
        *,
        labels: Sequence[str] = (),
        seed: int = 0,
        n_held_out: int = 1024,
        other_splits: dict[str, Callable[[torch.Generator, int], Drawn]] | None = None,
    ) -> None:
        if n_held_out < 1:
            raise InputError(f"n_held_out: must be positive, got {n_held_out}; give at least 1")
        self.name = name
        self.vocab_size = vocab_size
        self.seq_len = seq_len
        self._labels = tuple(labels)
        self._seed = seed
        self._n_held_out = n_held_out
        # Each with its draw and the split its keys must belong to.
        self._streams = {split: (draw, split) for split in BUCKETS}
        self._streams |= {split: (more, "test") for split, more in (other_splits or {}).items()}
        self._held_out: dict[str, Batch] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        """What `held_out` takes: `train` gives fresh examples of the training distribution."""
        return tuple(self._streams)

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        """`size` fresh training examples."""
        return self._take("train", generator, size)

    def held_out(self, split: str = "test") -> Iterator[Batch]:
        """The fixed rows of a split."""
        if split not in self._streams:
            raise unknown_name("split", split, self._streams)
        if split not in self._held_out:
            place = list(self._streams).index(split)
            generator = torch.Generator().manual_seed(self._seed * len(self._streams) + place)
            self._held_out[split] = self._take(split, generator, self._n_held_out)
        rows = self._held_out[split]
        for start in range(0, len(rows.input_ids), HELD_OUT_ROWS):
            part = slice(start, start + HELD_OUT_ROWS)
            yield Batch(rows.input_ids[part], rows.targets[part], rows.groups[part])

    def _take(self, split: str, generator: torch.Generator, size: int) -> Batch:
        draw, home = self._streams[split]
        share = len(BUCKETS[home]) / N_BUCKETS
        parts: list[Drawn] = []
        n_found = n_empty = 0
        while n_found < size:
            # A little more than the share asks for, so that one draw nearly always suffices.
            drawn = draw(generator, int((size - n_found) / share * 1.15) + 8)
            kept = (split_of(drawn.keys) == list(BUCKETS).index(home)).nonzero().squeeze(1)
            kept = kept[: size - n_found]
            n_empty = 0 if len(kept) else n_empty + 1
            if n_empty > MOST_EMPTY_DRAWS:
                raise InputError(
                    f"{self.name}: has too few examples to hold any out; make it longer, or its "
                    "alphabet larger"
                )
            n_found += len(kept)
            parts.append(_rows(drawn, kept))
        groups = [self._labels[i] for p in parts if p.groups is not None for i in p.groups.tolist()]
        return Batch(
            torch.cat([part.input_ids for part in parts]),
            torch.cat([part.targets for part in parts]),
            tuple(groups),
        )


def split_of(keys: Tensor) -> Tensor:
    """The split of each row of `keys`: its place in `BUCKETS`, decided by the key alone."""
    n = keys.shape[1]
    # Wrapping products of 64 bits are the point.
    powers = torch.full((n,), _BASE).cumprod(0)
    hashed = ((keys + 1) * powers).sum(1)
    hashed = (hashed ^ (hashed >> 29)) * _MIX
    bucket = (hashed >> 33).remainder(N_BUCKETS)
    place = torch.empty(N_BUCKETS, dtype=torch.int64)
    for i, buckets in enumerate(BUCKETS.values()):
        place[list(buckets)] = i
    return place[bucket]


def distinct(generator: torch.Generator, rows: int, n: int, of: int) -> Tensor:
    """`(rows, n)` numbers below `of`, no two of a row equal, in random order."""
    return torch.rand(rows, of, generator=generator).topk(n).indices


def ignored(rows: int, seq_len: int) -> Tensor:
    """Targets of which none is scored yet."""
    return torch.full((rows, seq_len), IGNORE)


def _rows(drawn: Drawn, kept: Tensor) -> Drawn:
    groups = None if drawn.groups is None else drawn.groups[kept]
    return Drawn(drawn.input_ids[kept], drawn.targets[kept], drawn.keys[kept], groups)


def at_least(name: str, value: int, least: int) -> None:
    """Raise unless an option is large enough."""
    if value < least:
        raise InputError(f"{name}: must be at least {least}, got {value}; give more")
