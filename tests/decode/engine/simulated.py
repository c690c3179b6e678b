"""A model without weights: the next token is a hash of everything that its cache says was seen.

Keys are the tokens themselves, written to and read from slots through block tables, and a state is
a running hash: a wrong block, a block written twice or a lost state changes what is said.
"""

from __future__ import annotations

import random
from collections.abc import Sequence as Ids

import numpy as np
import torch

from worthit.decode.cache.prefix import namespace
from worthit.decode.engine.memory import Group, Memory
from worthit.decode.engine.scheduler import Part
from worthit.decode.speculative.drafter import Asked, Plain, Verified
from worthit.decode.speculative.tree import Tree
from worthit.nn.cache import Cache, StateCache

VOCAB = 53


def after(h: int, token: int) -> int:
    return (h * 1_000_003 + token + 1) % (2**61 - 1)


def hashed(tokens: Ids[int]) -> int:
    h = 7
    for token in tokens:
        h = after(h, token)
    return h


def scores(h: int) -> list[float]:
    """A favourite, a second, and some for everybody."""
    row = [((h >> 7) * (i + 3)) % 101 / 101 for i in range(VOCAB)]
    row[h % VOCAB] += 2.5
    row[h // VOCAB % VOCAB] += 1.5
    return row


def seen(ids: Ids[int], window: int | None) -> int:
    """The hash that stands for what the last of `ids` sees: all, and what a window leaves."""
    h = hashed(ids)
    return h if window is None else after(h, hashed(ids[-window:]) % 1009)


def greedy(ids: Ids[int], n: int, *, window: int | None = None) -> list[int]:
    """What is said after `ids`, by itself: no cache, no engine."""
    known = list(ids)
    for _ in range(n):
        row = scores(seen(known, window))
        known.append(max(range(VOCAB), key=row.__getitem__))
    return known[len(ids) :]


class SimulatedRunner:
    """Layers that see everything, maybe a window, maybe a state."""

    vocab_size = VOCAB

    def __init__(
        self,
        *,
        n_blocks: int = 12,
        block_tokens: int = 4,
        window: int | None = None,
        has_state: bool = False,
        has_full: bool = True,
        can_share: bool = True,
        step_tokens: int = 16,
        context_len: int = 40,
        snapshot_bytes: int = 200,
    ) -> None:
        self.context_len, self.window, self.has_state = context_len, window, has_state
        self.has_full = has_full
        groups = [Group(None, n_blocks)] * has_full
        if window is not None:
            groups.append(Group(window, n_blocks))
        self.memory = Memory(
            groups=groups,
            block_tokens=block_tokens,
            make_own=lambda: Cache([[StateCache()]] if has_state else []),
            root=namespace,
            has_states=has_state,
            can_share=can_share,
            snapshot_bytes=snapshot_bytes,
            step_tokens=step_tokens,
        )
        self.stores = [np.full(g.n_blocks * block_tokens, -1) for g in groups]
        self.log: list[list[tuple[str, int, int]]] = []

    def check(self, n_tokens: int) -> None:
        pass

    def run(self, parts: Ids[Part]) -> torch.Tensor:
        size = self.memory.block_tokens
        self.log.append([(p.sequence.id, p.sequence.index, p.n) for p in parts])
        for store, group in zip(self.stores, range(len(self.memory.groups)), strict=True):
            written: list[int] = []
            for p in parts:
                table = p.sequence.holding.tables[group]
                for source, target in table.copies:
                    store[target * size : (target + 1) * size] = store[
                        source * size : (source + 1) * size
                    ]
                table.copies.clear()
            for p in parts:
                s = p.sequence
                table = s.holding.tables[group]
                slots = table.slots(s.n_computed, s.n_computed + p.n)
                assert (slots >= 0).all()
                assert all(table.pool.holders[b] == 1 for b in set((slots // size).tolist()))
                written += slots.tolist()
                store[slots] = new_ids(p)
            assert len(written) == len(set(written)), "two sequences write to one slot"
        rows = [row for p in parts for row in self._rows(p)]
        return torch.tensor(rows).reshape(-1, VOCAB)

    def _rows(self, p: Part) -> list[list[float]]:
        s, rows = p.sequence, []
        holding = s.holding
        if s.draft and self.has_state:
            holding.before_draft = holding.own.fork()
        for i, token in enumerate(new_ids(p)):
            end = s.n_computed + i + 1
            views = []
            if self.has_full:
                views.append(self.stores[0][holding.tables[0].slots(0, end)].tolist())
            if self.has_state:
                cache = holding.own.layers[0][0]
                old = cache.get("h")
                h = after(7 if old is None else int(old[0, 0]), token)
                cache["h"] = torch.tensor([[h, end]])
                views.append([h])
            if self.window is not None:
                first = max(0, end - self.window)
                near = self.stores[-1][holding.tables[-1].slots(first, end)].tolist()
            if i < p.n - p.n_rows:
                continue
            h = views[0][0] if not self.has_full else hashed(views[0])
            if self.has_full and self.has_state:
                assert views[1][0] == h, "the state and the blocks saw different tokens"
            if self.window is not None:
                h = after(h, hashed(near) % 1009)
            rows.append(scores(h))
        holding.own.length = s.n_computed + p.n
        return rows


def new_ids(part: Part) -> list[int]:
    s = part.sequence
    return [*s.ids, *s.draft.tokens][s.n_computed : s.n_computed + part.n]


class Guesser(Plain):
    """Proposes what will be said, with mistakes."""

    def __init__(self, seed: int, *, window: int | None = None, accuracy: float = 0.7) -> None:
        self.random, self.window, self.accuracy = random.Random(seed), window, accuracy

    def propose(self, asked: Ids[Asked]) -> list[Tree]:
        return [self._of(one) for one in asked]

    def _of(self, one: Asked) -> Tree:
        draft = greedy(one.ids, min(one.most, self.random.randrange(4)), window=self.window)
        return Tree.chain(
            [
                t if self.random.random() < self.accuracy else self.random.randrange(VOCAB)
                for t in draft
            ]
        )

    def observe(self, one: Asked, verified: Verified) -> None:
        assert len(verified.path) <= len(verified.tree)
        assert verified.start + verified.n < len(one.ids) + 1
