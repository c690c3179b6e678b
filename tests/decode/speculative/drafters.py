"""Drafters whose guesses are known: what may never change the text."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from worthit.decode.speculative.drafter import NOTHING, Asked, Plain, Verified
from worthit.decode.speculative.tree import ROOT, Tree


class Random(Plain):
    """Guesses anything; `q` is uniform where it says that its tokens were drawn."""

    def __init__(self, vocab_size: int, seed: int = 0, *, is_drawn: bool = False) -> None:
        self.vocab_size, self.is_drawn = vocab_size, is_drawn
        self.generator = torch.Generator().manual_seed(seed)
        self.heard: list[Verified] = []

    def propose(self, asked: Sequence[Asked]) -> list[Tree]:
        return [self._chain(one.most) for one in asked]

    def _chain(self, n: int) -> Tree:
        if not n:
            return NOTHING
        tokens = torch.randint(self.vocab_size, (n,), generator=self.generator).tolist()
        law = torch.full((n, self.vocab_size), 1 / self.vocab_size)
        return Tree.chain(tokens, law if self.is_drawn else None)

    def observe(self, one: Asked, verified: Verified) -> None:
        self.heard.append(verified)


class Oracle(Plain):
    """Knows what will be said; every third guess ends with a mistake if `errs`."""

    def __init__(self, texts: Sequence[Sequence[int]], *, errs: bool = False) -> None:
        self.texts, self.errs, self.n = [list(t) for t in texts], errs, 0

    def propose(self, asked: Sequence[Asked]) -> list[Tree]:
        return [self._of(one) for one in asked]

    def _of(self, one: Asked) -> Tree:
        n = len(one.ids)
        text = next((t for t in self.texts if t[:n] == one.ids), one.ids)
        draft = text[n : n + one.most]
        self.n += 1
        if self.errs and self.n % 3 == 0 and draft:
            draft[-1] = (draft[-1] + 1) % 5
        return Tree.chain(draft)


class Bush(Plain):
    """What will be said, hidden in a tree among wrong siblings."""

    has_trees = True

    def __init__(self, texts: Sequence[Sequence[int]], vocab_size: int) -> None:
        self.texts, self.vocab_size = [list(t) for t in texts], vocab_size

    def propose(self, asked: Sequence[Asked]) -> list[Tree]:
        return [self._of(one) for one in asked]

    def _of(self, one: Asked) -> Tree:
        n = len(one.ids)
        text = next((t for t in self.texts if t[:n] == one.ids), one.ids)
        tokens: list[int] = []
        parents: list[int] = []
        node = ROOT
        for i, token in enumerate(text[n : n + one.most]):
            if len(tokens) + 2 > one.most:
                break
            wrong = (token + 1 + i) % self.vocab_size
            pair = [wrong, token] if i % 2 == 0 else [token, wrong]
            first = len(tokens)
            tokens += pair
            parents += [node, node]
            node = first + pair.index(token)
        return Tree(tuple(tokens), tuple(parents))
