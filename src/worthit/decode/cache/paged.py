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
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from worthit.decode.cache.quantized import CacheFormat, decoded, encoded
from worthit.decode.cache.table import BlockTable
from worthit.nn.ragged import Ragged
from worthit.nn.tokens import Tokens

# Up to this many tokens, padding included, are gathered for single queries to be answered at once.
GATHERED_TOKENS = 2048


class PagedPair:
    """Two tensors with a row a token, `(..., n_slots, width)` each: keys and values, or latents."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.parts = [first, second]
        # What `worthit.nn.native` remembers of where these and other layers' stores are.
        self.stores: object = None

    @classmethod
    def like(cls, first: Tensor, second: Tensor, n_slots: int) -> PagedPair:
        """Room for `n_slots` tokens such as those of `first` and `second`, `(1, ..., n, width)`."""
        empty = [t.new_empty((*t.shape[1:-2], n_slots, t.shape[-1])) for t in (first, second)]
        return cls(empty[0], empty[1])

    def write(self, slots: Tensor, first: Tensor, second: Tensor) -> None:
        """Put tokens `(1, ..., n, width)` where `slots` `(n,)` say."""
        self.parts[0].index_copy_(-2, slots, first[0])
        self.parts[1].index_copy_(-2, slots, second[0])

    def run(self, start: int, n: int) -> tuple[Tensor, Tensor]:
        """The tokens of `n` slots from `start` on, `(..., n, width)`."""
        return self.parts[0].narrow(-2, start, n), self.parts[1].narrow(-2, start, n)

    def gather(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of any slots, `(..., n, width)`."""
        return self.parts[0].index_select(-2, slots), self.parts[1].index_select(-2, slots)

    # Whether what is read is what was written.
    is_exact = True

    def copy_blocks(self, sources: Tensor, targets: Tensor) -> None:
        """Copy slots to slots: those of a block that its new owner is about to change."""
        for t in self.parts:
            t.index_copy_(-2, targets, t.index_select(-2, sources))

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of one token."""
        return sum(int(t.nbytes) // int(t.shape[-2]) for t in self.parts)


class PagedCodes(PagedPair):
    """Keys and values in few bits, each token with scales of its own."""

    is_exact = False

    def __init__(self, form: CacheFormat, dtype: torch.dtype, parts: list[Tensor]) -> None:
        self.form, self.dtype, self.parts, self.stores = form, dtype, parts, None

    @classmethod
    def in_format(
        cls, form: CacheFormat, first: Tensor, second: Tensor, n_slots: int
    ) -> PagedCodes:
        """Room for `n_slots` tokens of keys and values such as these, in `form`."""
        parts = []
        for t in (first, second):
            one = t.new_zeros((*t.shape[1:-2], 1, t.shape[-1]))
            for x in encoded(one, form, by_channel=False):
                parts.append(x.new_empty((*x.shape[:-2], n_slots, x.shape[-1])))
        return cls(form, first.dtype, parts)

    def write(self, slots: Tensor, first: Tensor, second: Tensor) -> None:
        """Quantize tokens and put them where `slots` say."""
        new = [x for t in (first, second) for x in encoded(t[0], self.form, by_channel=False)]
        for store, x in zip(self.parts, new, strict=True):
            store.index_copy_(-2, slots, x)

    def run(self, start: int, n: int) -> tuple[Tensor, Tensor]:
        """The tokens of `n` slots from `start` on, as they are remembered."""
        return self._decoded([t.narrow(-2, start, n) for t in self.parts])

    def gather(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of any slots, as they are remembered."""
        return self._decoded([t.index_select(-2, slots) for t in self.parts])

    def _decoded(self, parts: list[Tensor]) -> tuple[Tensor, Tensor]:
        keys, values = (
            decoded(codes, scales, self.form, self.dtype, by_channel=False)
            for codes, scales in (parts[:2], parts[2:])
        )
        return keys, values


class Places:
    """Where the tokens of a pass go, and where what each of its sequences sees stands.

    Made once a pass and group of layers, and used by each of its layers.

    Attributes:
        tables: the sequences'.
        window: how far back the layers look; None for all the way.
        is_fresh: for each, whether it sees nothing but this pass.
        n_rows: sequences at the beginning of the pass that bring one token each.
    """

    def __init__(self, tables: Sequence[BlockTable], tokens: Tokens, *, window: int | None) -> None:
        assert tokens.parts is not None
        self.device = tokens.positions.device
        self.tables, self.window, self._parts = tables, window, tokens.parts
        self._ranges = [
            (0 if window is None else max(0, part.past - window + 1), part.past + part.n)
            for part in tokens.parts
        ]
        self.n_rows, self.is_exact = tokens.n_single, tokens.is_exact
        self.is_fresh = [part.past == 0 for part in tokens.parts]
        self._together: tuple[Tensor, Tensor | None] | None = None

    # What is asked for by some passes only is made when it is.

    @cached_property
    def slots(self) -> Tensor:
        """`(n,)`, where the tokens of the pass are written."""
        written = [
            table.slots(end - part.n, end)
            for table, part, (_, end) in zip(self.tables, self._parts, self._ranges, strict=True)
        ]
        return torch.from_numpy(np.concatenate(written)).to(self.device)

    @cached_property
    def seen(self) -> list[Tensor | tuple[int, int]]:
        """For each sequence `(first slot, n)` where what it sees is one run, else its slots."""
        return [self._seen(i) for i in range(len(self.tables))]

    def _seen(self, i: int) -> Tensor | tuple[int, int]:
        start, end = self._ranges[i]
        run = self.tables[i].run(start, end)
        if run is not None:
            return run, end - start
        return torch.from_numpy(self.tables[i].slots(start, end)).to(self.device)

    @property
    def n_padded(self) -> int:
        """Tokens that the sequences of one token would read if all were as long as the longest."""
        return self.n_rows * max(end - start for start, end in self._ranges[: self.n_rows])

    def together(self) -> tuple[Tensor, Tensor | None]:
        """Slots of all that the first `n_rows` sequences see, `(n_rows, longest)`, and a mask.

        The mask `(n_rows, 1, 1, longest)` is None where none is shorter. Padding repeats a slot of
        the sequence's own: what stands there is a number, and has no weight.
        """
        if self._together is None:
            ranges = self._ranges[: self.n_rows]
            lengths = np.array([end - start for start, end in ranges])
            slots = np.empty((self.n_rows, lengths.max()), dtype=np.int64)
            for row, (table, (start, end)) in enumerate(zip(self.tables, ranges, strict=False)):
                own = table.slots(start, end)
                slots[row, : len(own)] = own
                slots[row, len(own) :] = own[0]
            mask = None
            if lengths.min() < lengths.max():
                is_own = np.arange(lengths.max()) < lengths[:, None]
                mask = torch.from_numpy(is_own)[:, None, None].to(self.device)
            self._together = torch.from_numpy(slots).to(self.device), mask
        return self._together


class _Stored:
    """A sequence's cache in a pass that was stored as a whole: nothing is left to append."""

    is_observing = False

    def __init__(self, pair: PagedPair, seen: Tensor | tuple[int, int], *, is_fresh: bool) -> None:
        self.pair, self.seen, self.is_fresh = pair, seen, is_fresh

    def append(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """All that the sequence sees, its new tokens last."""
        if self.is_fresh and self.pair.is_exact:
            return first, second
        if isinstance(self.seen, tuple):
            first, second = self.pair.run(*self.seen)
        else:
            first, second = self.pair.gather(self.seen)
        return first[None], second[None]


class PagedRagged(Ragged):
    """One slot's store, as the sequences of a pass see it."""

    def __init__(self, pair: PagedPair, places: Places) -> None:
        # Not `super().__init__`: a compiled pass asks for none of its caches.
        self.pair, self.places = pair, places

    @cached_property
    def caches(self) -> list[Any]:  # type: ignore[override]
        """What each sequence reads."""
        places = self.places
        return [
            # Keys stand otherwise in a pass than in blocks, and may be added up otherwise.
            _Stored(self.pair, seen, is_fresh=is_fresh and not places.is_exact)
            for seen, is_fresh in zip(places.seen, places.is_fresh, strict=True)
        ]

    def in_blocks(self) -> tuple[Sequence[Sequence[int]], int] | None:
        """All of the slot is in blocks; not as it was written where that is in few bits."""
        tables = self.places.tables
        if type(self.pair) is not PagedPair or self.places.window is not None:
            return None
        return [table.blocks for table in tables], tables[0].block_tokens

    def offer(self, first: Tensor, second: Tensor, tokens: Tokens) -> Sequence[_Stored]:
        """Store the whole pass in one write; the caches only read."""
        self.pair.write(self.places.slots, first, second)
        return self.caches

    def attend_rows(self, q: Tensor, n: int, scale: float) -> Tensor | None:
        """One call for all while that reads little: gathering costs as much again as reading."""
        places = self.places
        if places.n_padded > GATHERED_TOKENS:
            return None
        slots, mask = places.together()
        keys, values = (
            t.unflatten(1, slots.shape).transpose(0, 1) for t in self.pair.gather(slots.view(-1))
        )  # (n, n_kv_heads, longest, head_dim)
        # Heads of a group are queries of one head: (n, n_kv_heads, group, head_dim).
        folded = q[0].unflatten(0, (keys.shape[1], -1)).permute(2, 0, 1, 3)
        out = functional.scaled_dot_product_attention(
            folded, keys, values, attn_mask=mask, scale=scale
        )
        return out.permute(1, 2, 0, 3).flatten(0, 1)[None]
