"""Activations of running text, batch after batch, in an order that no longer is the text's.

Neighbouring tokens have similar activations; a batch of neighbours is a poor sample. `mixed` keeps
a buffer of rows, gives half of it away in random order, and fills it up again.

The first token of a sequence is left out: in most trained transformers it is a sink of attention,
with a norm many times that of all others, and it would be all that a squared error sees. Where a
sequence begins in the middle of a text another token may become one; `usual` tells those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worthit.errors import InputError
from worthit.interp.hooks import activations
from worthit.interp.points import expand, width
from worthit.nn.decoder import Decoder

Rows = dict[str, Tensor]
# A row is a sink from this many times the median length on.
SINK = 8.0


def usual(rows: Tensor) -> Tensor:
    """Which of `rows` `(n, d)` are no sinks, `(n,)` booleans."""
    lengths = rows.norm(dim=-1)
    return lengths <= SINK * lengths.median()


@dataclass(frozen=True)
class Source:
    """Where activations come from: a model, its text, and the points.

    Args:
        model: in evaluation.
        ids: `(n, length)`, sequences of text.
        names: points of one vector a token.
        skip: first tokens of a sequence that are left out.
        batch: sequences of one pass.
    """

    model: Decoder
    ids: Tensor
    names: tuple[str, ...]
    skip: int = 1
    batch: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(expand(self.model, self.names)))
        for name in self.names:
            width(self.model, name)
        if not 0 <= self.skip < self.ids.shape[1]:
            raise InputError(
                f"skip: must leave a token of a sequence of {self.ids.shape[1]}, got {self.skip}"
            )

    @property
    def rows_each(self) -> int:
        """Rows of one sequence."""
        return int(self.ids.shape[1]) - self.skip

    @property
    def n_rows(self) -> int:
        """Rows of all sequences."""
        return len(self.ids) * self.rows_each

    def n_bytes(self, dtype: torch.dtype = torch.float32) -> int:
        """What all of them take on disk."""
        channels = sum(width(self.model, name) for name in self.names)
        return int(self.n_rows * channels * dtype.itemsize)

    def of(self, ids: Tensor) -> Rows:
        """The rows `(n, width)` of some sequences, sequence by sequence."""
        with torch.no_grad():
            seen = activations(self.model, ids, self.names)
        return {name: seen[name][:, self.skip :].flatten(0, 1).float() for name in self.names}

    def chunks(self, start: int = 0) -> Iterator[Rows]:
        """All of them, a pass at a time, from sequence `start` on."""
        for first in range(start, len(self.ids), self.batch):
            yield self.of(self.ids[first : first + self.batch])

    def token_of(self, row: int) -> tuple[int, int]:
        """The sequence and position that a row belongs to."""
        return row // self.rows_each, self.skip + row % self.rows_each


def endless(source: Source, start: int = 0) -> Iterator[Rows]:
    """Its chunks over and over; `start` counts sequences from the beginning of the first round."""
    n = len(source.ids)
    start = start % n // source.batch * source.batch
    while True:
        yield from source.chunks(start)
        start = 0


def mixed(
    chunks: Iterable[Rows], batch: int, *, buffer: int = 65_536, seed: int = 0
) -> Iterator[Rows]:
    """Batches of `batch` rows, the same rows at all points, drawn from a buffer of `buffer`.

    Memory is bounded by the buffer and one chunk. Every row comes once; a last batch may be
    smaller, if the chunks end.
    """
    generator = torch.Generator().manual_seed(seed)
    held: Rows = {}
    waiting: list[Rows] = []
    n_waiting = 0
    for chunk in chunks:
        waiting.append(chunk)
        n_waiting += len(next(iter(chunk.values())))
        if n_waiting + _count(held) < buffer:
            continue
        held = _shuffled([held, *waiting] if held else waiting, generator)
        waiting, n_waiting = [], 0
        given = max(_count(held) // 2 // batch, 1) * batch
        for first in range(0, given, batch):
            yield {name: rows[first : first + batch] for name, rows in held.items()}
        # A copy: a view would keep what was given away.
        held = {name: rows[given:].clone() for name, rows in held.items()}
    if waiting or _count(held):
        held = _shuffled([held, *waiting] if held else waiting, generator)
        for first in range(0, _count(held), batch):
            yield {name: rows[first : first + batch] for name, rows in held.items()}


def _count(held: Rows) -> int:
    return len(next(iter(held.values()))) if held else 0


def _shuffled(parts: list[Rows], generator: torch.Generator) -> Rows:
    together = {name: torch.cat([part[name] for part in parts]) for name in parts[-1]}
    order = torch.randperm(_count(together), generator=generator)
    return {name: rows[order] for name, rows in together.items()}
