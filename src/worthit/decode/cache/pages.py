"""Paged caches for a plain loop: sequences of one model that share a pool of blocks.

    pages = Pages(model, n_blocks=256)
    cache = pages.new_cache()
    model(ids, cache=cache)
    other = cache.fork()        # no byte is copied until one of them writes

What an engine does for many sequences at once (`worthit.decode.engine`), for one `Decoder.forward`
at a time: blocks on demand, shared until written to, given back by `free`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worthit.decode.cache.paged import PagedPair
from worthit.decode.cache.pool import BlockPool
from worthit.decode.cache.table import BlockTable
from worthit.errors import InputError
from worthit.nn.cache import Cache, KVCache, LatentCache
from worthit.nn.decoder import Decoder


class Pages:
    """Blocks for sequences of `model`, each of `block_tokens` tokens in every layer."""

    def __init__(self, model: Decoder, *, n_blocks: int, block_tokens: int = 16) -> None:
        self.pool, self.block_tokens = BlockPool(n_blocks), block_tokens
        self.kinds = [[type(c) for c in caches] for caches in model.new_cache().layers]
        for caches in model.new_cache().layers:
            for cache in caches:
                is_whole = isinstance(cache, KVCache) and cache.window is None
                if not (is_whole or isinstance(cache, LatentCache)):
                    raise InputError(
                        "paged caches hold keys and values of all tokens, got a layer that keeps a "
                        "window or a state; use Decoder.new_cache, or the engine"
                    )
        # Made when the first pass shows what a token takes.
        self.pairs: list[list[PagedPair | None]] = [[None] * len(kinds) for kinds in self.kinds]

    def new_cache(self) -> PagedCache:
        """An empty cache of one sequence."""
        return PagedCache(self, BlockTable(self.pool, self.block_tokens))

    def pair(self, i: int, j: int, first: Tensor, second: Tensor) -> PagedPair:
        """The store of one slot, for tokens such as these."""
        known = self.pairs[i][j]
        if known is None:
            n_slots = self.pool.n_blocks * self.block_tokens
            known = self.pairs[i][j] = PagedPair.like(first, second, n_slots)
        return known

    def carry_out(self, copies: list[tuple[int, int]]) -> None:
        """Copy whole blocks in every layer."""
        within = torch.arange(self.block_tokens)
        for source, target in copies:
            for pairs in self.pairs:
                for pair in pairs:
                    if pair is not None:
                        pair.copy_blocks(
                            source * self.block_tokens + within, target * self.block_tokens + within
                        )
        copies.clear()


class PagedCache(Cache):
    """The cache of one sequence, in blocks."""

    def __init__(self, pages: Pages, table: BlockTable) -> None:
        made: list[list[Any]] = [
            [_KEPT[kind](self, i, j) for j, kind in enumerate(kinds)]
            for i, kinds in enumerate(pages.kinds)
        ]
        super().__init__(made)
        self.pages, self.table = pages, table

    def room(self, n: int) -> int:
        """Have blocks for `n` more tokens, of this sequence alone; where they begin.

        Raises:
            OutOfBlocks: the pool has none left.
        """
        self.table.reserve(self.length + n, write_from=self.length)
        self.pages.carry_out(self.table.copies)
        return self.length

    def take_back(self, n: int) -> None:
        """Forget the last `n` tokens."""
        self.length -= n
        self.table.truncate(self.length)

    def fork(self) -> PagedCache:
        """A sequence of the same blocks, until one of both writes."""
        copy = PagedCache(self.pages, self.table.fork())
        copy.length = self.length
        return copy

    def free(self) -> None:
        """Give back all blocks."""
        self.table.free()
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks that this sequence holds, shared ones too."""
        n_slots = len(self.table.blocks) * self.table.block_tokens
        pairs = [pair for row in self.pages.pairs for pair in row if pair is not None]
        return sum(pair.bytes_per_slot for pair in pairs) * n_slots


class _InBlocks:
    """One slot of a `PagedCache`."""

    is_observing = holds = False

    def __init__(self, whole: PagedCache, i: int, j: int) -> None:
        self.whole, self.i, self.j = whole, i, j

    def append(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Store the pass's tokens and return all of the sequence's."""
        if first.shape[0] != 1:
            raise InputError(f"paged caches are of one sequence each, got {first.shape[0]} rows")
        start = self.whole.room(first.shape[-2])
        end = start + first.shape[-2]
        pair = self.whole.pages.pair(self.i, self.j, first, second)
        table = self.whole.table
        pair.write(torch.from_numpy(table.slots(start, end)).to(first.device), first, second)
        run = table.run(0, end)
        if run is not None:
            found = pair.run(run, end)
        else:
            found = pair.gather(torch.from_numpy(table.slots(0, end)).to(first.device))
        return found[0][None], found[1][None]


class PagedKV(_InBlocks, KVCache):
    """Keys and values."""


class PagedLatents(_InBlocks, LatentCache):
    """Latents and rotary keys."""


_KEPT: dict[type, type[_InBlocks]] = {KVCache: PagedKV, LatentCache: PagedLatents}
