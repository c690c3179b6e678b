"""Drafts of many sequences at once: who is asked, how much, and what the drafter is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from collections.abc import Sequence as Ids
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worthit.decode.engine.chooser import mixed
from worthit.decode.speculative.caches import why_not
from worthit.decode.speculative.control import Control
from worthit.decode.speculative.drafter import NOTHING, Asked, Drafter, Verified
from worthit.decode.speculative.taps import Taps
from worthit.decode.speculative.tree import Tree, require_trees, tree_tokens
from worthit.errors import InputError

if TYPE_CHECKING:
    from worthit.decode.engine.config import EngineConfig
    from worthit.decode.engine.request import Request
    from worthit.decode.engine.runner import Runner
    from worthit.decode.engine.scheduler import Part
    from worthit.decode.engine.sequence import Sequence
    from worthit.nn.tokens import Tokens


class Drafts:
    """A drafter, as the engine asks it.

    Attributes:
        control: decides how many tokens to guess; None always takes `draft_tokens`.

    Raises:
        InputError: a model or a cache on which guesses cannot be verified.
    """

    def __init__(
        self,
        drafter: Drafter,
        runner: Runner,
        config: EngineConfig,
        clock: Callable[[], float],
    ) -> None:
        self.drafter, self.memory, self.config, self.clock = drafter, runner.memory, config, clock
        self.control: Control | None = None
        self._context_len = runner.context_len
        self._taps: Taps | None = None
        model = getattr(runner, "model", None)
        if model is not None:
            reason = why_not(model, 0)
            if reason is not None:
                raise InputError(f"draft: {reason}")
            if drafter.has_trees:
                require_trees(model)
                _require_blocks(runner, config)
            if drafter.taps:
                self._taps = Taps(model, drafter.taps)
            if config.has_draft_control:
                from worthit.decode.engine.verify_costs import costs_of

                self.control = Control(costs_of(runner, config))
        if self.control is not None and drafter.has_trees:
            self.control.fixed = config.draft_tokens

    def asked(self, request: Request, ids: list[int], index: int, seed: int) -> Asked:
        """What the drafter is asked with for one sample, for as long as that lives."""
        generator = torch.Generator().manual_seed(mixed(seed, -1 - index))

        def chance() -> float:
            return float(torch.rand((), dtype=torch.float64, generator=generator))

        return Asked(ids=ids, n_prompt=len(ids), sampling=request.sampling, chance=chance)

    def propose(self, running: Ids[Sequence]) -> None:
        """Give a draft to each sequence for which one pays."""
        ready: list[tuple[Sequence, Asked]] = []
        n_lacking = sum(s.n_total - s.n_computed for s in running)
        n_tokens = min(n_lacking, self.config.max_batch_tokens)
        for sequence in running:
            asked = sequence.asked
            # What is not computed yet has no successor to guess, and a prompt may have followers.
            is_ready = sequence.n_said and sequence.n_computed + 1 == len(sequence.ids)
            if asked is None or not is_ready or sequence.draft:
                continue
            asked.most = self._most(sequence)
            if self.control is not None:
                asked.most = self.control.n_wanted(
                    asked.pace, asked.most, n_rows=len(running), n_tokens=n_tokens
                )
            if asked.most:
                ready.append((sequence, asked))
        if not ready:
            return
        started = self.clock()
        try:
            trees = self.drafter.propose([asked for _, asked in ready])
        except Exception as error:  # whatever it raises: the text needs no drafts
            warnings.warn(f"the drafter {self.drafter.name} failed: {error}", stacklevel=2)
            return
        for (sequence, asked), tree in zip(ready, trees, strict=True):
            sequence.draft = _cut(tree, asked.most)
        if self.control is not None:
            self.control.note_draft_time(self.clock() - started, sum(map(len, trees)))

    def _most(self, sequence: Sequence) -> int:
        """Tokens of a draft, at most: what follows it must still be wanted, and fit."""
        n = self.config.draft_tokens
        if self.drafter.has_trees and sequence.n_left > 1:
            # A tree has more tokens than it is deep: it may need more places than are left to say.
            room = self.memory.n_tokens() or self._context_len
            if len(sequence.ids) + n <= min(room, self._context_len):
                return n
        return max(0, min(n, min(sequence.n_left, self.memory.n_alike(sequence)) - 1))

    def judged(
        self, part: Part, start: int, tree: Tree, path: Ids[int], rows: Tensor, at: int
    ) -> None:
        """Say what came of a draft; `at` is where its tokens stand in the pass."""
        asked = part.sequence.asked
        if asked is None:
            return
        if self.control is not None:
            self.control.note(asked.pace, len(tree), len(path))
        n_known = part.n - len(tree)
        kept = [*range(n_known), *(n_known + node for node in path)]
        verified = Verified(
            start=start,
            n=len(kept),
            tree=tree,
            path=tuple(path),
            features=self._features([at + i for i in kept]),
            logits=rows if self.drafter.wants_logits else None,
        )
        self.drafter.observe(asked, verified)

    def computed(self, part: Part, start: int, at: int) -> None:
        """Say that tokens without a draft were computed."""
        asked = part.sequence.asked
        if asked is not None:
            rows = range(at, at + part.n)
            features = self._features(list(rows))
            self.drafter.observe(asked, Verified(start=start, n=part.n, features=features))

    def _features(self, rows: list[int]) -> Tensor | None:
        if self._taps is None:
            return None
        stream = self._taps.features()
        return None if stream is None else stream[0, rows]


def describe_trees(tokens: Tokens, drafts: Ids[Tree]) -> None:
    """Say of a ragged pass which of its sequences bring a tree, and where its tokens stand."""
    assert tokens.parts is not None
    has_trees = False
    for part, tree in zip(tokens.parts, drafts, strict=True):
        if tree.is_chain:
            continue
        assert part.n == 1 + len(tree), "a tree follows one token"
        described = tree_tokens(tree, part.past, tokens.positions.device)
        part.positions, part.among = described.positions, described.among
        part.slot_positions = described.slot_positions
        has_trees = True
    if has_trees:
        tokens.positions = torch.cat([part.positions for part in tokens.parts], dim=1)


def _cut(tree: Tree, most: int) -> Tree:
    """At most `most` nodes: the first ones, parents before children."""
    if len(tree) <= most:
        return tree
    if not most:
        return NOTHING
    q = None if tree.q is None else tree.q[:most]
    return Tree(tree.tokens[:most], tree.parents[:most], q)


def _require_blocks(runner: Runner, config: EngineConfig) -> None:
    """Raise where an accepted path cannot be moved to the front, or bits would depend on it."""
    if config.is_exact:
        raise InputError(
            "is_exact: a tree's tokens are attended among their siblings, in an order of their "
            "own; draft chains"
        )
    layout = getattr(runner, "layout", None)
    if layout is not None and (layout.flushes is not None or any(g.kept for g in layout.groups)):
        raise InputError(
            "draft: a tree leaves gaps that only rows in blocks can close; groups of tokens that "
            "share scales, and bounded caches, take chains"
        )
