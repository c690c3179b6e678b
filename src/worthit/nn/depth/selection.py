"""Some of the tokens through a block, in their order and with their own positions.

What mixture of depths and mixture of recursions share: tokens that are let through see each other
and nobody else, and what the block adds to them is weighted; the others stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worthit.errors import InputError
from worthit.nn.cache import MixerCache
from worthit.nn.tokens import Tokens

Run = Callable[[Tensor, Tokens, list[object] | None], Tensor]


class RowCaches:
    """A block's caches, one set a row of the batch: rows let different tokens through.

    `positions` holds, for each row, where the tokens it has let through stand.
    """

    holds = False

    def __init__(self, make: Callable[[], list[object]]) -> None:
        self.make = make
        self.rows: list[list[object]] = []
        self.positions: list[Tensor] = []

    def start(self, positions: Tensor) -> None:
        """Make room for the rows of `positions` `(batch, n)`, if there is none yet."""
        while len(self.rows) < positions.shape[0]:
            self.rows.append(self.make())
            self.positions.append(positions[:1, :0])

    def settle(self) -> None:
        """Nothing of what is here will be taken back."""

    def take_back(self, n: int) -> None:
        """Refused: how many of the last `n` tokens came through is not remembered."""
        raise InputError(
            f"a layer that lets some tokens through cannot take back the last {n}; fork the cache "
            "before them"
        )

    def fork(self) -> RowCaches:
        """A copy that goes on by itself."""
        copy = RowCaches(self.make)
        copy.rows = [[_copy(c) for c in row] for row in self.rows]
        copy.positions = list(self.positions)
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        caches = (cache for row in self.rows for cache in row)
        return sum(cache.nbytes for cache in caches if isinstance(cache, MixerCache))

    def select_rows(self, rows: Tensor) -> None:
        """Keep these batch rows, in this order, each a copy of its own."""
        wanted = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        kept = [int(i) for i in wanted]
        self.rows = [[_copy(c) for c in self.rows[i]] for i in kept]
        self.positions = [self.positions[i] for i in kept]


def _copy(cache: object) -> object:
    assert isinstance(cache, MixerCache)
    return cache.fork()


def best(scores: Tensor, allowed: Tensor, is_real: Tensor, share: float) -> Tensor:
    """The `share` of each row's real tokens that score highest among the `allowed` ones.

    All but `share` are `(batch, n)`; at least one token a row.
    """
    # The little more is for shares such as 2/3, whose product falls short of a whole number.
    room = (is_real.sum(dim=1) * share + 1e-3).long().clamp_min(1)
    rank = (
        scores.masked_fill(~allowed, float("-inf")).argsort(dim=1, descending=True).argsort(dim=1)
    )
    return (rank < room[:, None]) & allowed


def through(
    run: Run,
    x: Tensor,
    tokens: Tokens,
    chosen: Tensor,
    weights: Tensor,
    cache: RowCaches | None = None,
) -> Tensor:
    """`x + weights * (block(x) - x)` where `chosen`, `x` elsewhere; `(batch, n, d_model)`.

    Args:
        run: the block, on tokens that follow each other.
        chosen: `(batch, n)` booleans.
        weights: `(batch, n)`.
        cache: what the tokens that came through before left behind.
    """
    if cache is not None:
        return _row_by_row(run, x, tokens, chosen, weights, cache)
    n = int(chosen.sum(dim=1).max())
    if n == 0:
        return x
    # Chosen tokens in order, on the right; rows with fewer are padded on the left with -1.
    slots = torch.arange(chosen.shape[1], device=x.device)
    order = torch.where(chosen, slots, -1).sort(dim=1).values[:, -n:]
    is_real, index = order >= 0, order.clamp_min(0)
    positions = tokens.positions.gather(1, index)
    some = Tokens(
        n=n,
        past=0,
        positions=positions,
        is_real=None if bool(is_real.all()) else is_real,
        relative_bias=tokens.relative_bias,
        slot_positions=positions,
    )
    wide = index[..., None].expand(-1, -1, x.shape[-1])
    before = x.gather(1, wide)
    added = (run(before, some, None) - before) * weights.gather(1, index)[..., None].to(x.dtype)
    return x.scatter_add(1, wide, added.masked_fill(~is_real[..., None], 0.0))


def _row_by_row(
    run: Run, x: Tensor, tokens: Tokens, chosen: Tensor, weights: Tensor, cache: RowCaches
) -> Tensor:
    cache.start(tokens.positions)
    rows = []
    for i, row in enumerate(x.split(1)):
        index = chosen[i].nonzero()[:, 0]
        if not len(index):
            rows.append(row)
            continue
        past, positions = cache.positions[i], tokens.positions[i : i + 1, index]
        seen = torch.cat([past, positions], dim=1)
        some = Tokens(
            n=len(index),
            past=past.shape[1],
            positions=positions,
            relative_bias=tokens.relative_bias,
            slot_positions=seen,
        )
        cache.positions[i] = seen
        before = row[:, index]
        added = run(before, some, cache.rows[i]) - before
        rows.append(row.index_add(1, index, added * weights[i, index, None].to(x.dtype)))
    return torch.cat(rows)
