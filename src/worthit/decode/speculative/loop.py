"""One sequence, token runs at a time: guess, verify in one pass, say what the target says.

Leviathan et al. 2022, arXiv:2211.17192, algorithm 1: each pass of the target says at least one
token, and one more for each guess that it would have said itself. `speculate` is the loop, `Target`
a model with its cache that can lose what was guessed wrong. The engine does the same for many
sequences at once; this is what one prompt on the command line gets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from worthit.decode.sampling import Sampling
from worthit.decode.speculative.accept import child_of, distribution, pick
from worthit.decode.speculative.caches import can_take_back, spare_windows, why_not
from worthit.decode.speculative.control import Control
from worthit.decode.speculative.drafter import NOTHING, Asked, Drafter, Verified
from worthit.decode.speculative.taps import Taps
from worthit.decode.speculative.tree import ROOT, Tree, commit, require_trees, tree_pass
from worthit.decode.speculative.views import shallow
from worthit.errors import InputError
from worthit.nn.cache import Cache
from worthit.nn.decoder import Decoder
from worthit.nn.tokens import Tokens, tokens_of

# What windows keep behind them: a guess is no longer than this.
MOST_DRAFTED = 64


@dataclass
class Tally:
    """What a generation took.

    Attributes:
        n_passes: of the target, the prompt's included.
        n_drafts, n_drafted, n_accepted: guesses, tokens in them, and those that were kept.
        lengths: accepted tokens of each draft, in order.
    """

    n_passes: int = 0
    n_drafts: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    lengths: list[int] = field(default_factory=list)

    @property
    def acceptance(self) -> float | None:
        """The share of drafted tokens that were kept; None where nothing was drafted."""
        return self.n_accepted / self.n_drafted if self.n_drafted else None


@runtime_checkable
class SharesCache(Protocol):
    """A drafter that computes on the target's own cache."""

    def bind(self, target: Target) -> None:
        """Draft on the cache of `target`."""


class Target:
    """A model and the cache of one sequence; `run` verifies, `keep` cuts back to what was said."""

    def __init__(self, model: Decoder, cache: Cache | None = None) -> None:
        self.model = model
        self.cache = model.new_cache() if cache is None else cache
        spare_windows(self.cache, MOST_DRAFTED)
        self.loses_rows = can_take_back(self.cache)
        # Where states cannot lose tokens: the cache before the guess.
        self._before: Cache | None = None
        # The stream `(1, m, d_model)` after the first layers, of tokens begun and not run.
        self.begun: Tensor | None = None
        # The first layers and the others, each with their caches, once something was begun.
        self._halves: tuple[tuple[Decoder, Cache], tuple[Decoder, Cache]] | None = None

    def begin(self, ids: Sequence[int], depth: int) -> Tensor:
        """Run `ids` beyond what is computed through the first `depth` layers; logits of the last.

        `run` goes on from there. Only rows can be begun: states would be lost.
        """
        model, cache = self.model, self.cache
        if self._halves is None:
            layers = range(len(model.layers))
            self._halves = (
                (shallow(model, layers[:depth]), Cache(cache.layers[:depth])),
                (shallow(model, layers[depth:]), Cache(cache.layers[depth:])),
            )
        done = cache.length + (0 if self.begun is None else self.begun.shape[1])
        x = self._first(torch.tensor([list(ids[done:])], device=model.device), done)
        self.begun = x if self.begun is None else torch.cat([self.begun, x], dim=1)
        return model.logits(x[:, -1:])[0, -1]

    def _first(self, new: Tensor, past: int) -> Tensor:
        assert self._halves is not None
        first, cache = self._halves[0]
        tokens = self._tokens(new, past)
        return first.run(first.embed(new, tokens), tokens, cache)

    def _tokens(self, new: Tensor, past: int) -> Tokens:
        tokens = tokens_of(new, past=past, attention_mask=None)
        model = self.model
        tokens.relative_bias, tokens.low_rank = model.relative_bias, model.low_rank
        return tokens

    def run(self, new: Sequence[int], tree: Tree = NOTHING) -> Tensor:
        """Compute `new` and `tree` after it; logits `(1 + len(tree), vocab_size)`.

        Of the last of `new`, and of each node. `keep` comes before the next one.
        """
        model, cache = self.model, self.cache
        if not tree.is_chain:
            assert len(new) == 1, "a tree follows one token"
            return tree_pass(model, cache, new[0], tree)
        ids = torch.tensor([[*new, *tree.tokens]], device=model.device)
        if self._halves is not None:
            return self._finish(ids)[-1 - len(tree) :]
        if len(tree) and not self.loses_rows:
            self._before = cache.fork()
        logits = model(ids, cache=cache, last_only=not len(tree))
        return logits[0, -1 - len(tree) :]

    def _finish(self, ids: Tensor) -> Tensor:
        assert self._halves is not None
        past, (deep, cache) = self.cache.length, self._halves[1]
        x, self.begun = self.begun, None
        n_begun = 0 if x is None else x.shape[1]
        if n_begun < ids.shape[1]:
            rest = self._first(ids[:, n_begun:], past + n_begun)
            x = rest if x is None else torch.cat([x, rest], dim=1)
        assert x is not None
        y = deep.run(x, self._tokens(ids, past), cache)
        self.cache.length += ids.shape[1]
        return self.model.logits(y)[0]

    def keep(self, tree: Tree, path: Sequence[int]) -> None:
        """Forget the nodes of the last pass that are not on `path`.

        States go back to before the pass: what of it stays is computed again with the next one.
        """
        before, self._before = self._before, None
        if len(path) == len(tree):
            return
        if before is not None:
            self.cache = before
        else:
            commit(self.cache, tree, path)


def speculate(
    model: Decoder,
    prompt: Sequence[int],
    drafter: Drafter,
    *,
    max_tokens: int,
    most: int = 7,
    sampling: Sampling | None = None,
    seed: int | None = None,
    control: Control | None = None,
    tally: Tally | None = None,
) -> Iterator[int]:
    """The tokens that `model` says after `prompt`, one by one, several a pass.

    Greedy tokens are those of `generate` (in fp32; below, rounding depends on how many rows a pass
    has: see docs/speculative.md); drawn ones have the target's distribution.

    Args:
        most: tokens of a guess, at most.
        control: decides how many, up to `most`; None always takes `most`.
        tally: filled as it goes.

    Raises:
        InputError: a prompt beyond the context, or a model whose tokens cannot be verified several
            at once.
    """
    context = model.spec.context_len
    sampling = Sampling() if sampling is None else sampling
    tally = Tally() if tally is None else tally
    n_total = min(len(prompt) + max_tokens, context + 1)
    reason = why_not(model, n_total)
    if reason is not None:
        raise InputError(f"draft: {reason}")
    if drafter.has_trees:
        require_trees(model)
    if not 1 <= most <= MOST_DRAFTED:
        raise InputError(f"draft tokens: must be from 1 to {MOST_DRAFTED}, got {most}")
    chance, of_drafts = _chances(seed)
    target = Target(model)
    if isinstance(drafter, SharesCache):
        drafter.bind(target)
    one = Asked(
        ids=list(prompt), n_prompt=len(prompt), sampling=sampling, chance=of_drafts.__next__
    )
    taps = Taps(model, drafter.taps) if drafter.taps else None
    try:
        while len(one.ids) < n_total:
            with torch.inference_mode():
                tree = NOTHING
                n_left = n_total - len(one.ids)
                # What follows a guess must fit too. A tree has more tokens than it is deep.
                one.most = min(most, n_left - 1)
                if drafter.has_trees and n_left > 1 and len(one.ids) + most <= context:
                    one.most = most
                if target.cache.length and one.most > 0:
                    if control is not None:
                        one.most = control.n_wanted(one.pace, one.most)
                    if one.most:
                        tree = drafter.propose([one])[0]
                said, verified = _step(target, one, tree, chance, taps, drafter)
                tally.n_passes += 1
                if len(tree):
                    tally.n_drafts += 1
                    tally.n_drafted += len(tree)
                    tally.n_accepted += len(verified.path)
                    tally.lengths.append(len(verified.path))
                    if control is not None:
                        control.note(one.pace, len(tree), len(verified.path))
                drafter.observe(one, verified)
            yield from said[:n_left]
    finally:
        if taps is not None:
            taps.close()


def _step(
    target: Target,
    one: Asked,
    tree: Tree,
    chance: Iterator[float],
    taps: Taps | None,
    drafter: Drafter,
) -> tuple[list[int], Verified]:
    """A pass over what is not computed and the guess: the tokens said, and what came of it."""
    start = target.cache.length
    new = one.ids[start:]
    logits = target.run(new, tree)
    path: list[int] = []
    said: list[int] = []
    node = ROOT
    while True:
        row = logits[node + 1]
        if one.sampling.is_plain:
            token = int(row.argmax())
            node = child_of(tree, node, token)
        else:
            history = torch.tensor(one.ids) if one.sampling.has_history else None
            law = distribution(row, one.sampling, history, one.n_prompt)
            token, node = pick(law, tree, node, chance.__next__)
        said.append(token)
        one.ids.append(token)
        if node == ROOT:
            break
        path.append(node)
    features = None
    if taps is not None:
        stream = taps.features()
        assert stream is not None
        kept = [*range(len(new)), *(len(new) + i for i in path)]
        features = stream[0, kept]
    verified = Verified(
        start=start,
        n=len(new) + len(path),
        tree=tree,
        path=tuple(path),
        features=features,
        logits=logits if drafter.wants_logits else None,
    )
    target.keep(tree, path)
    return said, verified


def _chances(seed: int | None) -> tuple[Iterator[float], Iterator[float]]:
    """Numbers for the choices, and others for the drafts: neither moves the other."""
    first = torch.Generator()
    if seed is None:
        first.seed()
    else:
        first.manual_seed(seed)
    second = torch.Generator().manual_seed((first.initial_seed() + 1) % 2**63)

    def numbers(generator: torch.Generator) -> Iterator[float]:
        while True:
            yield float(torch.rand((), dtype=torch.float64, generator=generator))

    return numbers(first), numbers(second)
