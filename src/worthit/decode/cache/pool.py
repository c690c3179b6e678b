"""Blocks of the cache by number: who holds them, what they hold, and which are given up first.

Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
PagedAttention", arXiv:2309.06180, sections 4.2 and 4.3.

| paper | here |
|---|---|
| physical block | a number below `n_blocks` |
| reference count | `holders` |
| free blocks | empty ones, and kept ones: nobody's, with contents that may be wanted again |

A block whose last holder leaves keeps its contents while they have a name; such blocks are emptied
in the order in which they were left, least recently used first. Nothing here touches memory.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from worthit.errors import WorthitError

# Named blocks are emptied so many at a time, that a growing sequence finds its neighbour free.
EMPTIED_AT_ONCE = 32


class OutOfBlocks(WorthitError):
    """Every block of the pool is held by some sequence."""


@dataclass(frozen=True)
class Contents:
    """What a full block holds: its name in the chain of prefixes, and the tokens to verify it."""

    name: bytes
    tokens: tuple[int, ...]


class BlockPool:
    """`n_blocks` blocks, each held by any number of sequences."""

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self.holders = [0] * n_blocks
        self._is_empty = np.ones(n_blocks, dtype=bool)
        self._n_empty = n_blocks
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._contents: dict[int, Contents] = {}
        self._named: dict[bytes, int] = {}

    @property
    def n_free(self) -> int:
        """Blocks that nobody holds."""
        return self._n_empty + len(self._kept)

    @property
    def n_held(self) -> int:
        """Blocks that somebody holds."""
        return self.n_blocks - self.n_free

    @property
    def n_named(self) -> int:
        """Blocks that can be found by what they hold."""
        return len(self._named)

    def take(self, after: int | None = None) -> int:
        """A block to write into, held once; the one next to `after` if that is empty.

        Raises:
            OutOfBlocks: all are held.
        """
        if self._n_empty == 0:
            self._empty_some()
        if after is not None and after + 1 < self.n_blocks and self._is_empty[after + 1]:
            block = after + 1
        else:
            block = self._roomiest()
        self._is_empty[block] = False
        self._n_empty -= 1
        self.holders[block] = 1
        return block

    def hold(self, block: int) -> None:
        """One holder more; a block that was kept is somebody's again."""
        if self.holders[block] == 0:
            del self._kept[block]
        self.holders[block] += 1

    def drop(self, block: int) -> None:
        """One holder less; the last one leaves the block to be reused, with its contents if named.

        A sequence drops its blocks from the last to the first, so that ends of prefixes, which
        fewer others share, are emptied before their beginnings.
        """
        assert self.holders[block] > 0, f"block {block} was dropped by more than hold it"
        self.holders[block] -= 1
        if self.holders[block]:
            return
        if block in self._contents:
            self._kept[block] = None
        else:
            self._is_empty[block] = True
            self._n_empty += 1

    def name(self, block: int, name: bytes, tokens: tuple[int, ...]) -> None:
        """Make a full block findable; where another already has these contents, it stays that."""
        if name in self._named or block in self._contents:
            return
        self._named[name] = block
        self._contents[block] = Contents(name, tokens)

    def find(self, name: bytes, tokens: tuple[int, ...]) -> int | None:
        """The block that holds `tokens` behind the prefix that `name` stands for."""
        block = self._named.get(name)
        if block is None or self._contents[block].tokens != tokens:
            return None
        return block

    def forget(self, block: int) -> None:
        """Take the name off a block whose contents are about to change."""
        contents = self._contents.pop(block, None)
        if contents is not None:
            del self._named[contents.name]
            if self.holders[block] == 0:
                del self._kept[block]
                self._is_empty[block] = True
                self._n_empty += 1

    def forget_all(self) -> None:
        """Take off all names."""
        for block in list(self._contents):
            self.forget(block)

    def _empty_some(self) -> None:
        if not self._kept:
            raise OutOfBlocks(f"all {self.n_blocks} blocks of the cache are held")
        for block in list(self._kept)[:EMPTIED_AT_ONCE]:
            self.forget(block)

    def _roomiest(self) -> int:
        """Where a sequence has most room to grow without a jump.

        In the middle of the longest run of empty blocks if somebody is growing into its beginning,
        else at its beginning.
        """
        edges = np.diff(self._is_empty.astype(np.int8), prepend=0, append=0)
        starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        longest = int((ends - starts).argmax())
        start, end = int(starts[longest]), int(ends[longest])
        is_grown_into = start > 0 and self.holders[start - 1] > 0
        return start + (end - start) // 2 if is_grown_into else start
