"""A plan through a model: one pass over all its tokens, logits where a choice is to be made."""

from __future__ import annotations

from collections.abc import Sequence as Ids
from typing import Protocol

import torch
from torch import Tensor

from worthit.decode.cache.paged import PagedPair, PagedRagged, Places
from worthit.decode.cache.prefix import namespace
from worthit.decode.cache.table import BlockTable, blocks_for
from worthit.decode.engine.config import EngineConfig
from worthit.decode.engine.memory import Group, Memory
from worthit.decode.engine.scheduler import Part
from worthit.errors import InputError
from worthit.nn.cache import Cache, KVCache, LatentCache, StateCache
from worthit.nn.decoder import Block, Decoder
from worthit.nn.position.rope import changes_with_length
from worthit.nn.ragged import Ragged, ragged_tokens
from worthit.spec.model import LatentAttention

# Room for blocks where nobody says how much.
DEFAULT_CACHE_BYTES = 2**30


class Runner(Protocol):
    """What an engine asks of a model."""

    vocab_size: int
    context_len: int
    memory: Memory

    def run(self, parts: Ids[Part]) -> Tensor:
        """Logits `(rows, vocab_size)`: of each part its last `n_rows` tokens, in order."""

    def check(self, n_tokens: int) -> None:
        """Raise InputError where a sequence of so many tokens is beyond this model."""


class ModelRunner:
    """Runs a `Decoder`; keys, values and latents are in blocks, the rest with each sequence."""

    def __init__(self, model: Decoder, config: EngineConfig) -> None:
        self.model, self.config = model, config
        self.vocab_size, self.context_len = model.spec.vocab_size, model.spec.context_len
        self.device = model.device
        # For each slot in blocks, its group; slots are (layer, place in the layer).
        windows: dict[tuple[int, int], int | None] = {}
        template = model.new_cache()
        for i, (block, caches) in enumerate(zip(model.layers, template.layers, strict=True)):
            for j, cache in enumerate(caches):
                if type(block) is Block and _is_paged(block, j, cache):
                    windows[i, j] = cache.window if isinstance(cache, KVCache) else None
        self._slots = list(windows)
        self._n_caches = [len(caches) for caches in template.layers]
        groups = sorted(set(windows.values()), key=lambda w: (w is not None, w))
        self._group_of = {slot: groups.index(window) for slot, window in windows.items()}
        own = [
            cache
            for i, caches in enumerate(template.layers)
            for j, cache in enumerate(caches)
            if (i, j) not in windows
        ]
        widths = self._widths()
        self.memory = Memory(
            groups=self._sized(groups, widths),
            block_tokens=config.block_tokens,
            make_own=self._new_own,
            root=self._root,
            has_states=bool(own),
            can_share=config.has_prefix_caching and all(type(c) is StateCache for c in own),
            snapshot_bytes=config.snapshot_bytes,
            step_tokens=config.max_batch_tokens,
        )
        self._pairs = {
            slot: PagedPair.like(*widths[slot], self._n_slots(slot)) for slot in self._slots
        }

    @torch.inference_mode()
    def run(self, parts: Ids[Part]) -> Tensor:
        """One pass; sequences' `n_computed` is not moved."""
        sequences = [part.sequence for part in parts]
        held = [s.holding for s in sequences]
        holdings = [h for h in held if h is not None]
        assert len(holdings) == len(held)
        tokens = ragged_tokens([(p.n, p.sequence.n_computed) for p in parts], self.device)
        ids = [t for p in parts for t in _new_ids(p)]
        for p, holding in zip(parts, holdings, strict=True):
            if p.sequence.draft and self.memory.has_states:
                holding.before_draft = holding.own.fork()
        for group in range(len(self.memory.groups)):
            self._copy(group, [h.tables[group] for h in holdings])
        places = [
            Places([h.tables[g] for h in holdings], tokens, window=group.window)
            for g, group in enumerate(self.memory.groups)
        ]
        layers = []
        for i, own in enumerate(zip(*(h.own.layers for h in holdings), strict=True)):
            layer: list[Ragged] = []
            own_slots = iter(zip(*own, strict=True))
            for j in range(self._n_caches[i]):
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
        logits = self.model.forward_ragged(
            torch.tensor([ids], device=self.device),
            tokens,
            Cache(layers),  # type: ignore[arg-type]  # a Ragged where one sequence has a cache
            rows=torch.tensor(rows, dtype=torch.long, device=self.device),
        )
        for p, holding in zip(parts, holdings, strict=True):
            holding.own.length = p.sequence.n_computed + p.n
        return logits[0]

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

    def _new_own(self) -> Cache:
        """A sequence's caches of everything that is not in blocks."""
        whole = self.model.new_cache()
        return Cache(
            [
                [cache for j, cache in enumerate(caches) if (i, j) not in self._group_of]
                for i, caches in enumerate(whole.layers)
            ]
        )

    def _root(self, salt: str) -> bytes:
        """The name of an empty prefix: everything that cached numbers depend on."""
        dtype = str(self.model.dtype)
        return namespace(f"{self.model.source}", self.model.spec.name, dtype, salt)

    def _widths(self) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        """For each slot in blocks, two empty tensors of the shape and type of one pass's part."""
        found = {}
        for i, j in self._slots:
            a = self.model.layers[i].mixers[j].spec
            if isinstance(a, LatentAttention):
                shapes: list[tuple[int, ...]] = [(1, 0, a.kv_lora_rank), (1, 0, a.qk_rope_head_dim)]
            else:
                shapes = [(1, a.n_kv_heads, 0, a.head_dim)] * 2
            own, other = (
                torch.empty(s, dtype=self.model.dtype, device=self.device) for s in shapes
            )
            found[i, j] = (own, other)
        return found

    def _sized(
        self, windows: list[int | None], widths: dict[tuple[int, int], tuple[Tensor, Tensor]]
    ) -> list[Group]:
        """Blocks for each group: windows as many as they can use, the rest for what sees all."""
        c = self.config
        block_bytes = [0] * len(windows)
        for slot, pair in widths.items():
            block_bytes[self._group_of[slot]] += sum(map(_row_bytes, pair)) * c.block_tokens
        longest = blocks_for(self.context_len, c.block_tokens) + 1
        useful = [
            c.max_sequences * min(longest, longest if w is None else self._n_of_window(w))
            for w in windows
        ]
        if c.n_blocks is not None:
            return [Group(w, c.n_blocks) for w in windows]
        total = c.cache_bytes
        if total is None:
            one = sum(b * n // c.max_sequences for b, n in zip(block_bytes, useful, strict=True))
            total = max(one, min(DEFAULT_CACHE_BYTES, one * c.max_sequences))
        left, groups = total, []
        # Windows first: what they can use is bounded.
        for w, size, most in reversed(list(zip(windows, block_bytes, useful, strict=True))):
            n = min(most, left // size)
            groups.append(Group(w, n))
            left -= n * size
        groups.reverse()
        if any(g.n_blocks == 0 for g in groups):
            raise InputError(
                f"cache_bytes: must hold a block of each kind of layer, which takes "
                f"{sum(block_bytes)} bytes, got {total}"
            )
        return groups

    def _n_of_window(self, window: int) -> int:
        """The most blocks that a sequence holds of a window and one step behind it."""
        return blocks_for(window + self.config.max_batch_tokens, self.config.block_tokens) + 1

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

    def _n_slots(self, slot: tuple[int, int]) -> int:
        group = self.memory.groups[self._group_of[slot]]
        return group.n_blocks * self.config.block_tokens


def _is_paged(block: Block, j: int, cache: object) -> bool:
    """Whether the cache of the j-th mixer grows by a row a token, which a pass writes at once."""
    return (
        j < len(block.mixers)
        and bool(block.mixers[j].takes_parts)
        and type(cache) in (KVCache, LatentCache)
    )


def _new_ids(part: Part) -> list[int]:
    sequence, end = part.sequence, part.sequence.n_computed + part.n
    known = sequence.ids[sequence.n_computed : end]
    return known + sequence.draft[: part.n - len(known)]


def _starts(parts: Ids[Part]) -> list[int]:
    starts, at = [], 0
    for part in parts:
        starts.append(at)
        at += part.n
    return starts


def _row_bytes(like: Tensor) -> int:
    """Bytes of one token, of a tensor `(1, ..., 0, width)`."""
    n: int = like.element_size() * like.shape[-1]
    for size in like.shape[1:-2]:
        n *= size
    return n
