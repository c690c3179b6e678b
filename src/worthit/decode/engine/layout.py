"""Which caches of a model are in blocks, in what groups, how large: decided once, from its layers.

A slot is one cache of one layer. What grows by a row a token, and is written by a whole pass at
once, is in blocks that all sequences share; states, and caches with an order of their own, are with
each sequence. Of the latter those that grow are counted in blocks all the same, so that the
scheduler knows when memory ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from worthit.decode.cache.evicting import EvictingKV
from worthit.decode.cache.make import new_cache
from worthit.decode.cache.paged import PagedCodes, PagedPair
from worthit.decode.cache.quantized import CacheFormat, QuantizedKV
from worthit.decode.cache.table import blocks_for
from worthit.decode.engine.config import EngineConfig
from worthit.decode.engine.memory import Group
from worthit.errors import InputError
from worthit.nn.cache import Cache, KVCache, LatentCache, StateCache
from worthit.nn.decoder import Block, Decoder
from worthit.spec.model import Attention, LatentAttention

# Room for blocks where nobody says how much.
DEFAULT_CACHE_BYTES = 2**30
Slot = tuple[int, int]
# How far back layers look, and how many tokens they keep: layers of one key share block tables.
Key = tuple[int | None, int | None]


@dataclass(frozen=True)
class InBlocks:
    """A slot whose rows are in blocks: two tensors of these shapes, `(1, ..., 0, width)`."""

    key: Key
    first: tuple[int, ...]
    second: tuple[int, ...]
    form: CacheFormat | None = None


class Layout:
    """The slots of `model`, and the groups that they form.

    Attributes:
        slots: those in blocks.
        groups: block tables that every sequence has.
        block_bytes: bytes of a block of each group, over all its layers.
        n_caches: caches of each layer.
        has_states: whether some cache of a sequence's own is a state, or goes on like one.
        flushes: see `Memory`.
        can_share: whether everything of a sequence can be found again at the end of a block.
    """

    def __init__(self, model: Decoder, config: EngineConfig) -> None:
        self.model, self.config = model, config
        self.slots: dict[Slot, InBlocks] = {}
        self.has_states, self.can_share = False, True
        self.flushes: tuple[int, int] | None = None
        self._dtype = model.dtype
        template = new_cache(model, config.cache)
        self.n_caches = [len(caches) for caches in template.layers]
        token_bytes: dict[Key, float] = {}
        for i, (block, caches) in enumerate(zip(model.layers, template.layers, strict=True)):
            for j, cache in enumerate(caches):
                found = self._place(block, (i, j), cache)
                if found is not None:
                    key, n_bytes = found
                    token_bytes[key] = token_bytes.get(key, 0) + n_bytes
        self._keys = sorted(token_bytes, key=lambda key: (key[0] is not None, key[0] or 0))
        self.block_bytes = [int(token_bytes[key] * config.block_tokens) for key in self._keys]
        self.groups = self._sized()

    def group_of(self, slot: Slot) -> int:
        """Which group's tables point to the rows of `slot`."""
        return self._keys.index(self.slots[slot].key)

    def pairs(self, device: torch.device) -> dict[Slot, PagedPair]:
        """The stores of all slots in blocks."""
        stores: dict[Slot, PagedPair] = {}
        for slot, one in self.slots.items():
            n_slots = self.groups[self.group_of(slot)].n_blocks * self.config.block_tokens
            first, second = (
                torch.empty(shape, dtype=self._dtype, device=device)
                for shape in (one.first, one.second)
            )
            if one.form is None:
                stores[slot] = PagedPair.like(first, second, n_slots)
            else:
                stores[slot] = PagedCodes.in_format(one.form, first, second, n_slots)
        return stores

    def new_own(self) -> Cache:
        """A sequence's caches of everything that is not in blocks."""
        whole = new_cache(self.model, self.config.cache)
        return Cache(
            [
                [cache for j, cache in enumerate(caches) if (i, j) not in self.slots]
                for i, caches in enumerate(whole.layers)
            ]
        )

    def _place(self, block: torch.nn.Module, slot: Slot, cache: object) -> tuple[Key, float] | None:
        """Say where the cache of a slot is; its group and bytes a token, where it grows."""
        if isinstance(cache, EvictingKV | QuantizedKV):
            return self._place_bounded(block, slot, cache)
        j = slot[1]
        is_mixer = type(block) is Block and j < len(block.mixers)
        if is_mixer and block.mixers[j].takes_parts and type(cache) in (KVCache, LatentCache):
            a = block.mixers[j].spec
            if isinstance(a, LatentAttention):
                first: tuple[int, ...] = (1, 0, a.kv_lora_rank)
                second: tuple[int, ...] = (1, 0, a.qk_rope_head_dim)
                window = None
            else:
                first = second = (1, a.n_kv_heads, 0, a.head_dim)
                assert isinstance(cache, KVCache)
                window = cache.window
            self.slots[slot] = InBlocks((window, None), first, second)
            n_elements = sum(_elements(shape) for shape in (first, second))
            return (window, None), n_elements * self._dtype.itemsize
        self.has_states = True
        self.can_share = self.can_share and type(cache) is StateCache
        return None

    def _place_bounded(
        self, block: torch.nn.Module, slot: Slot, cache: EvictingKV | QuantizedKV
    ) -> tuple[Key, float]:
        a = block.mixers[slot[1]].spec
        assert isinstance(a, Attention)
        shape = (1, a.n_kv_heads, 0, a.head_dim)
        store = cache.store if isinstance(cache, EvictingKV) else cache
        form = store.form if isinstance(store, QuantizedKV) else None
        bits = 8 * self._dtype.itemsize if form is None else form.bits_per_element
        kept = cache.budget if isinstance(cache, EvictingKV) else None
        if kept is None and form is not None and form.is_by_token:
            self.slots[slot] = InBlocks((None, None), shape, shape, form)
        else:
            self.can_share = False
        if form is not None and not form.is_by_token:
            self.flushes = form.recent, form.tokens_at_once
        return (None, kept), 2 * _elements(shape) * bits / 8

    def _sized(self) -> list[Group]:
        """Blocks for each group: bounded ones as many as they can use, the rest for the others."""
        c = self.config
        if c.n_blocks is not None:
            return [Group(window, c.n_blocks, kept) for window, kept in self._keys]
        longest = blocks_for(self.model.spec.context_len, c.block_tokens) + 1
        useful = [c.max_sequences * min(longest, self._most(key)) for key in self._keys]
        total = c.cache_bytes
        if total is None:
            one = sum(
                size * n // c.max_sequences
                for size, n in zip(self.block_bytes, useful, strict=True)
            )
            total = max(one, min(DEFAULT_CACHE_BYTES, one * c.max_sequences))
        left, groups = total, []
        by_bound = sorted(
            zip(self._keys, self.block_bytes, useful, strict=True),
            key=lambda each: each[0] == (None, None),
        )
        for (window, kept), size, most in by_bound:
            n = min(most, left // size)
            groups.append(Group(window, n, kept))
            left -= n * size
        if any(group.n_blocks == 0 for group in groups):
            raise InputError(
                "cache_bytes: must hold a block of each kind of layer, which takes "
                f"{sum(self.block_bytes)} bytes, got {total}"
            )
        return sorted(groups, key=lambda g: self._keys.index((g.window, g.kept)))

    def _most(self, key: Key) -> int:
        """The most blocks that a sequence holds of a bounded group; a context of others."""
        window, kept = key
        behind = kept if window is None else window
        if behind is None:
            return blocks_for(self.model.spec.context_len, self.config.block_tokens) + 1
        return blocks_for(behind + self.config.max_batch_tokens, self.config.block_tokens) + 1


def _elements(shape: tuple[int, ...]) -> int:
    """Elements of one token, of a tensor `(1, ..., 0, width)`."""
    n = 1
    for size in (*shape[1:-2], shape[-1]):
        n *= size
    return n
