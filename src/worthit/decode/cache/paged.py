"""Keys and values of all sequences in one place, cut into blocks that tables point to.

Kwon et al. 2023, arXiv:2309.06180, section 4.1: attention reads a sequence's keys through its block
table. Here blocks of one sequence are neighbours as long as the pool can arrange it (`BlockPool`),
and what attention reads is then a view; where they are not, they are gathered into a copy, which
costs about as much again as reading them.

`PagedPair` is the store of one slot of the model, `PagedRagged` what a pass of several sequences is
given of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worthit.decode.cache.table import BlockTable
from worthit.nn.ragged import Ragged
from worthit.nn.tokens import Tokens


class PagedPair:
    """Two tensors with a row a token, `(..., n_slots, width)` each: keys and values, or latents."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first, second

    @classmethod
    def like(cls, first: Tensor, second: Tensor, n_slots: int) -> PagedPair:
        """Room for `n_slots` tokens such as those of `first` and `second`, `(1, ..., n, width)`."""
        empty = [t.new_empty((*t.shape[1:-2], n_slots, t.shape[-1])) for t in (first, second)]
        return cls(empty[0], empty[1])

    def write(self, slots: Tensor, first: Tensor, second: Tensor) -> None:
        """Put tokens `(1, ..., n, width)` where `slots` `(n,)` say."""
        self.first.index_copy_(-2, slots, first[0])
        self.second.index_copy_(-2, slots, second[0])

    def copy_blocks(self, sources: Tensor, targets: Tensor) -> None:
        """Copy slots to slots: those of a block that its new owner is about to change."""
        for t in (self.first, self.second):
            t.index_copy_(-2, targets, t.index_select(-2, sources))

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of one token."""
        n_slots = self.first.shape[-2]
        return int(self.first.nbytes + self.second.nbytes) // int(n_slots)


class Places:
    """Where the tokens of a pass go, and where what each of its sequences sees stands.

    Made once a pass and group of layers, and used by each of its layers.
    """

    def __init__(self, tables: Sequence[BlockTable], tokens: Tokens, *, window: int | None) -> None:
        assert tokens.parts is not None
        device = tokens.positions.device
        written: list[Tensor] = []
        self.seen: list[Tensor | tuple[int, int] | None] = []
        for table, part in zip(tables, tokens.parts, strict=True):
            end = part.past + part.n
            start = 0 if window is None else max(0, part.past - window + 1)
            written.append(torch.from_numpy(table.slots(part.past, end)))
            if part.past == 0:
                self.seen.append(None)
                continue
            run = table.run(start, end)
            if run is None:
                self.seen.append(torch.from_numpy(table.slots(start, end)).to(device))
            else:
                self.seen.append((run, end - start))
        self.slots = torch.cat(written).to(device)


class _Stored:
    """A sequence's cache in a pass that was stored as a whole: nothing is left to append."""

    def __init__(self, pair: PagedPair, seen: Tensor | tuple[int, int] | None) -> None:
        self.pair, self.seen = pair, seen

    def append(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """All that the sequence sees, its new tokens last."""
        if self.seen is None:
            return first, second
        if isinstance(self.seen, tuple):
            start, n = self.seen
            return (
                self.pair.first.narrow(-2, start, n)[None],
                self.pair.second.narrow(-2, start, n)[None],
            )
        return (
            self.pair.first.index_select(-2, self.seen)[None],
            self.pair.second.index_select(-2, self.seen)[None],
        )


class PagedRagged(Ragged):
    """One slot's store, as the sequences of a pass see it."""

    def __init__(self, pair: PagedPair, places: Places) -> None:
        super().__init__([_Stored(pair, seen) for seen in places.seen])
        self.pair, self.places = pair, places

    def offer(self, first: Tensor, second: Tensor, tokens: Tokens) -> Sequence[_Stored]:
        """Store the whole pass in one write; the caches only read."""
        self.pair.write(self.places.slots, first, second)
        return self.caches
