"""Sequences of unequal length in one pass: their tokens side by side, as the one row of a batch.

What acts on tokens one by one (embeddings, norms, projections, feed-forwards) runs once over all of
them. What mixes tokens runs once a sequence, with that sequence's own caches; sequences that bring
a single token to a recurrent layer go through it together, as rows. Nothing is padded.

`ragged_tokens` describes the pass, `Ragged` holds the caches of one slot of the model, one a
sequence, and `each`, `in_rows` are how a layer that is not made for such passes takes part in one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worthit.nn.cache import Cache, StateCache
from worthit.nn.tokens import Tokens

Run = Callable[[Tensor, Tokens, Any], Tensor]


def ragged_tokens(parts: Sequence[tuple[int, int]], device: torch.device) -> Tokens:
    """Describe a pass of sequences, each `(n new tokens, n past ones)`, in this order."""
    own, start = [], 0
    places = np.concatenate([np.arange(past, past + n) for n, past in parts])
    positions = torch.from_numpy(places).to(device)[None]
    for n, past in parts:
        own.append(Tokens(n=n, past=past, positions=positions[:, start : start + n], start=start))
        start += n
    return Tokens(n=start, past=0, positions=positions, parts=own)


class Ragged:
    """The caches of one slot (a mixer, or a feed-forward that remembers), one a sequence."""

    caches: list[Any]

    def __init__(self, caches: Sequence[Any]) -> None:
        self.caches = list(caches)

    def offer(self, first: Tensor, second: Tensor, tokens: Tokens) -> Sequence[Any]:
        """The caches to which each sequence then appends its share of `first` and `second`.

        A store that keeps all sequences in one place takes everything here, in one write.

        Args:
            first, second: keys and values, or latents and rotary keys, `(1, ..., n, width)` of the
                whole pass.
        """
        return self.caches

    def attend_rows(self, q: Tensor, n: int, scale: float) -> Tensor | None:
        """What the single queries of the first `n` sequences read, where that is faster at once.

        After `offer`, and for plain softmax over all that each sequence sees. None where this kind
        of store has no such way.

        Args:
            q: `(1, n_heads, n, head_dim)`.
        """
        return None

    def in_blocks(self) -> tuple[Sequence[Sequence[int]], int] | None:
        """The blocks of each sequence and the tokens of one, where all of the slot is in blocks."""
        return None


def side_by_side(caches: Sequence[Cache]) -> Cache:
    """What a ragged pass of these sequences is given: a `Ragged` where each has a cache."""
    layers = zip(*(cache.layers for cache in caches), strict=True)
    return Cache([[Ragged(slot) for slot in zip(*layer, strict=True)] for layer in layers])  # type: ignore[misc]


def each(x: Tensor, tokens: Tokens, dim: int = 1) -> list[Tensor]:
    """`x` cut along `dim` into the sequences' shares: views."""
    assert tokens.parts is not None
    return list(x.split([part.n for part in tokens.parts], dim=dim))


class _Given:
    """A cache that has what it is asked for."""

    is_observing = False

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first, second

    def append(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return self.first, self.second


def token_by_token(
    recall: Callable[..., Tensor],
    queries: Sequence[Tensor],
    stored: tuple[Tensor, Tensor],
    part: Tokens,
    cache: Any,
    *,
    window: int | None = None,
) -> Tensor:
    """`recall` of a sequence's new tokens, one call each: the call that it would be alone.

    A fused attention adds up in an order that depends on how many queries it is given.

    Args:
        queries: each `(1, n_heads, n, width)`.
        stored: keys and values, or latents and rotary keys, `(1, ..., n, width)`.
    """
    first, second = cache.append(*stored)
    read = []
    for i in range(part.n):
        end = first.shape[-2] - part.n + i + 1
        start = 0 if window is None else max(0, end - window)
        one = Tokens(n=1, past=part.past + i, positions=part.positions[:, i : i + 1])
        one.relative_bias = part.relative_bias
        seen = _Given(first[..., start:end, :], second[..., start:end, :])
        own = [q[:, :, i : i + 1] for q in queries]
        read.append(recall(*own, *(t[..., i : i + 1, :] for t in stored), one, seen))
    return torch.cat(read, dim=2)


def one_by_one(run: Run, x: Tensor, tokens: Tokens, slots: Sequence[Ragged] | None) -> Tensor:
    """`run(x, tokens, caches)` for each sequence: for layers that know nothing of such passes."""
    assert tokens.parts is not None
    shares = each(x, tokens)
    outputs = []
    for i, (share, part) in enumerate(zip(shares, tokens.parts, strict=True)):
        own = None if slots is None else [slot.caches[i] for slot in slots]
        outputs.append(run(share, part, own))
    return torch.cat(outputs, dim=1)


def in_rows(run: Run, x: Tensor, tokens: Tokens, slot: Ragged) -> Tensor:
    """`run(x, tokens, cache)` for each sequence; those with one token and a state all at once."""
    parts = tokens.parts
    assert parts is not None
    together = [
        i
        for i, (part, cache) in enumerate(zip(parts, slot.caches, strict=True))
        if part.n == 1 and isinstance(cache, StateCache) and cache.state
    ]
    if len(together) < 2:
        return one_by_one(lambda s, t, c: run(s, t, c[0]), x, tokens, [slot])
    is_row = set(together)
    outputs: list[Tensor | None] = [None] * len(parts)
    rows, described = tokens.shared(("rows", tuple(together)), lambda: _rows(tokens, together))
    own = [slot.caches[i] for i in together]
    shared = StateCache.of_rows(own)
    y = run(x[0, rows][:, None], described, shared)
    shared.give_rows(own)
    for row, i in enumerate(together):
        outputs[i] = y[row : row + 1]
    for i, (share, part) in enumerate(zip(each(x, tokens), parts, strict=True)):
        if i not in is_row:
            outputs[i] = run(share, part, slot.caches[i])
    return torch.cat([y for y in outputs if y is not None], dim=1)


def _rows(tokens: Tokens, which: Sequence[int]) -> tuple[Tensor, Tokens]:
    """Where the single tokens of these sequences stand, and what they are as rows of a batch."""
    assert tokens.parts is not None
    own = [tokens.parts[i] for i in which]
    rows = torch.tensor([part.start for part in own], device=tokens.positions.device)
    positions = torch.cat([part.positions for part in own])
    return rows, Tokens(n=1, past=max(part.past for part in own), positions=positions)
