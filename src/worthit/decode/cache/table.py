"""A block table: where the tokens of one sequence stand among the blocks of a pool.

Kwon et al. 2023, arXiv:2309.06180, sections 4.2 (block table), 4.3 (on demand) and 4.4 (copy on
write).

| paper | here |
|---|---|
| logical block | an index into `blocks` |
| block size B | `block_tokens` |
| slot | block * `block_tokens` + place in it |
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from worthit.decode.cache.pool import BlockPool

# Where a window has moved on: the block is given back, and never read again.
GONE = -1


class BlockTable:
    """The blocks of one sequence, in order; `copies` are those to be made before the next write."""

    def __init__(self, pool: BlockPool, block_tokens: int) -> None:
        self.pool, self.block_tokens = pool, block_tokens
        self.blocks: list[int] = []
        self.n_gone = 0
        # (from, to): contents to be copied, because others still read the original.
        self.copies: list[tuple[int, int]] = []

    def n_missing(self, n_tokens: int, *, write_from: int) -> int:
        """Blocks that `reserve` would take."""
        first = write_from // self.block_tokens
        n_shared = sum(self.pool.holders[b] > 1 for b in self.blocks[first:])
        return max(0, blocks_for(n_tokens, self.block_tokens) - len(self.blocks)) + n_shared

    def reserve(self, n_tokens: int, *, write_from: int) -> None:
        """Have room for `n_tokens`, with those from `write_from` on in blocks of this table alone.

        Raises:
            OutOfBlocks: the pool has too few; what was taken stays here.
        """
        first = write_from // self.block_tokens
        for i in range(first, len(self.blocks)):
            block = self.blocks[i]
            if self.pool.holders[block] > 1:
                own = self.pool.take(self.blocks[i - 1] if i else None)
                self.pool.drop(block)
                self.copies.append((block, own))
                self.blocks[i] = own
            else:
                self.pool.forget(block)
        while len(self.blocks) < blocks_for(n_tokens, self.block_tokens):
            self.blocks.append(self.pool.take(self.blocks[-1] if self.blocks else None))

    def share(self, blocks: list[int], n_gone: int = 0) -> None:
        """Begin with blocks that others have written; the first `n_gone` are never needed."""
        assert not self.blocks
        for block in blocks[n_gone:]:
            self.pool.hold(block)
        self.blocks = [GONE] * n_gone + blocks[n_gone:]
        self.n_gone = n_gone

    def fork(self) -> BlockTable:
        """A table of the same blocks, held twice."""
        copy = BlockTable(self.pool, self.block_tokens)
        copy.share(self.blocks, self.n_gone)
        return copy

    def truncate(self, n_tokens: int) -> None:
        """Give back the blocks behind the first `n_tokens`."""
        kept = blocks_for(n_tokens, self.block_tokens)
        while len(self.blocks) > kept:
            block = self.blocks.pop()
            if block != GONE:
                self.pool.drop(block)
        self.n_gone = min(self.n_gone, len(self.blocks))

    def release_before(self, token: int) -> None:
        """Give back the blocks that end before `token`: no query will see them."""
        for i in range(self.n_gone, min(token // self.block_tokens, len(self.blocks))):
            self.pool.drop(self.blocks[i])
            self.blocks[i] = GONE
            self.n_gone = i + 1

    def free(self) -> None:
        """Give back everything, the last block first."""
        self.truncate(0)

    def slots(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """Where tokens `start` to `end` stand."""
        size = self.block_tokens
        first = start // size
        blocks = np.array(self.blocks[first : blocks_for(end, size)], dtype=np.int64)
        every = (blocks[:, None] * size + np.arange(size)).reshape(-1)
        found: npt.NDArray[np.int64] = every[start - first * size : end - first * size]
        return found

    def run(self, start: int, end: int) -> int | None:
        """The slot of token `start` if all up to `end` stand in one run behind it, else None."""
        size = self.block_tokens
        first, last = start // size, (end - 1) // size
        block = self.blocks[first]
        # Blocks are mostly neighbours; the ends tell at once when they are not.
        if self.blocks[last] - block != last - first:
            return None
        if self.blocks[first : last + 1] != list(range(block, block + last - first + 1)):
            return None
        return block * size + start % size


def blocks_for(n_tokens: int, block_tokens: int) -> int:
    """Blocks that hold `n_tokens`."""
    return -(-n_tokens // block_tokens)
