"""A plan through a model: one pass over all its tokens, logits where a choice is to be made."""

from __future__ import annotations

from collections.abc import Sequence as Ids
from typing import Protocol

import torch
from torch import Tensor

from worthit.decode.cache.paged import PagedRagged, Places
from worthit.decode.cache.prefix import namespace
from worthit.decode.cache.table import BlockTable
from worthit.decode.engine.config import EngineConfig
from worthit.decode.engine.drafts import describe_trees
from worthit.decode.engine.exact import LEAST_ROWS, make_exact
from worthit.decode.engine.layout import Layout
from worthit.decode.engine.memory import Holding, Memory
from worthit.decode.engine.scheduler import Part
from worthit.decode.engine.sequence import Sequence
from worthit.errors import InputError
from worthit.nn.cache import Cache
from worthit.nn.decoder import Decoder
from worthit.nn.position.rope import changes_with_length
from worthit.nn.ragged import Ragged, ragged_tokens


class Runner(Protocol):
    """What an engine asks of a model."""

    vocab_size: int
    context_len: int
    memory: Memory

    def run(self, parts: Ids[Part]) -> Tensor:
        """Logits `(rows, vocab_size)`: of each part its last `n_rows` tokens, in order."""

    def keep_path(self, sequence: Sequence, path: Ids[int]) -> None:
        """Move the accepted nodes of a tree behind the token said before it."""

    def check(self, n_tokens: int) -> None:
        """Raise InputError where a sequence of so many tokens is beyond this model."""


class ModelRunner:
    """Runs a `Decoder`; what grows is in blocks where it can be, the rest with each sequence.

    Attributes:
        layout: where each cache of the model is.
    """

    def __init__(self, model: Decoder, config: EngineConfig) -> None:
        self.model, self.config = model, config
        self.vocab_size, self.context_len = model.spec.vocab_size, model.spec.context_len
        self.device = model.device
        self.layout = Layout(model, config)
        self.memory = Memory(
            groups=self.layout.groups,
            block_tokens=config.block_tokens,
            make_own=self.layout.new_own,
            root=self._root,
            has_states=self.layout.has_states,
            can_share=config.has_prefix_caching and self.layout.can_share,
            snapshot_bytes=config.snapshot_bytes,
            step_tokens=config.max_batch_tokens,
            flushes=self.layout.flushes,
        )
        if config.is_exact:
            make_exact(model, config)
        self._pairs = self.layout.pairs(self.device)
        self._group_of = {slot: self.layout.group_of(slot) for slot in self._pairs}

    @torch.inference_mode()
    def run(self, parts: Ids[Part]) -> Tensor:
        """One pass; sequences' `n_computed` is not moved."""
        held = [part.sequence.holding for part in parts]
        holdings = [h for h in held if h is not None]
        assert len(holdings) == len(held)
        tokens = ragged_tokens([(p.n, p.sequence.n_computed) for p in parts], self.device)
        tokens.is_exact = self.config.is_exact
        describe_trees(tokens, [p.sequence.draft for p in parts])
        ids = [t for p in parts for t in _new_ids(p)]
        for p, holding in zip(parts, holdings, strict=True):
            if p.sequence.draft:
                self.hold(holding)
        places = {}
        for group in sorted(set(self._group_of.values())):
            tables = [h.tables[group] for h in holdings]
            self._copy(group, tables)
            window = self.memory.groups[group].window
            places[group] = Places(tables, tokens, window=window)
        layers = []
        for i, own in enumerate(zip(*(h.own.layers for h in holdings), strict=True)):
            layer: list[Ragged] = []
            own_slots = iter(zip(*own, strict=True))
            for j in range(self.layout.n_caches[i]):
                pair = self._pairs.get((i, j))
                if pair is None:
                    layer.append(Ragged(next(own_slots)))
                else:
                    layer.append(PagedRagged(pair, places[self._group_of[i, j]]))
            layers.append(layer)
        rows = [
            row
            for p, start in zip(parts, _starts(parts), strict=True)
            for row in range(start + p.n - p.n_rows, start + p.n)
        ]
        n_rows = len(rows)
        if tokens.is_exact and rows:
            rows += rows[:1] * max(0, LEAST_ROWS - n_rows)
        logits = self.model.forward_ragged(
            torch.tensor([ids], device=self.device),
            tokens,
            Cache(layers),  # type: ignore[arg-type]  # a Ragged where one sequence has a cache
            rows=torch.tensor(rows, dtype=torch.long, device=self.device),
        )
        for p, holding in zip(parts, holdings, strict=True):
            holding.own.length = p.sequence.n_computed + p.n
        return logits[0, :n_rows]

    def keep_path(self, sequence: Sequence, path: Ids[int]) -> None:
        """Move the accepted nodes of the last pass's tree behind the token said before it.

        Whoever calls then takes back what stands behind them.
        """
        holding, first = sequence.holding, len(sequence.ids) - len(path) - 1
        assert holding is not None
        moved = [(node, i) for i, node in enumerate(path) if node != i]
        if not moved:
            return
        end = max(node for node, _ in moved) + 1
        for group, table in enumerate(holding.tables):
            slots = torch.from_numpy(table.slots(first, first + end))
            sources, targets = (slots[list(each)] for each in zip(*moved, strict=True))
            for slot, pair in self._pairs.items():
                if self._group_of[slot] == group:
                    pair.copy_blocks(sources, targets)

    def check(self, n_tokens: int) -> None:
        """Raise where rotations change on the way: cached keys would keep the old ones."""
        position = self.model.spec.position
        if not changes_with_length(position):
            return
        assert position.scaling is not None
        known = position.scaling.original_context_len
        if n_tokens > known:
            raise InputError(
                f"max_tokens: this model turns its keys otherwise beyond {known} tokens "
                f"({position.scaling.kind}), which no cache survives; got {n_tokens} with the "
                "prompt. Ask for less, or use `generate`"
            )

    def _root(self, salt: str) -> bytes:
        """The name of an empty prefix: everything that cached numbers depend on."""
        model = self.model
        facts = (model.source, model.spec.name, model.dtype, self.config.cache)
        return namespace(*map(str, facts), salt)

    def hold(self, holding: Holding) -> None:
        """Let what a draft brings be taken back."""
        if self.layout.has_states:
            holding.before_draft = holding.own.fork()
        else:
            for cache in holding.own:
                cache.holds = True

    def _copy(self, group: int, tables: list[BlockTable]) -> None:
        """Carry out the copies that these tables wait for."""
        copies = [copy for table in tables for copy in table.copies]
        if not copies:
            return
        size = torch.arange(self.config.block_tokens)
        sources, targets = (
            (torch.tensor(ends)[:, None] * self.config.block_tokens + size).flatten()
            for ends in zip(*copies, strict=True)
        )
        for slot, pair in self._pairs.items():
            if self._group_of[slot] == group:
                pair.copy_blocks(sources, targets)
        for table in tables:
            table.copies.clear()


def _new_ids(part: Part) -> list[int]:
    sequence, end = part.sequence, part.sequence.n_computed + part.n
    known = sequence.ids[sequence.n_computed : end]
    return [*known, *sequence.draft.tokens[: part.n - len(known)]]


def _starts(parts: Ids[Part]) -> list[int]:
    starts, at = [], 0
    for part in parts:
        starts.append(at)
        at += part.n
    return starts
