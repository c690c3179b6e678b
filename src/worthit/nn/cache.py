"""What a model remembers between passes, one kind a mixer; each knows its exact bytes.

- `KVCache`: keys and values of every token (or of the last `window`), per head.
- `LatentCache`: MLA's latent and rotary key of every token.
- `StateCache`: tensors of a fixed size, whatever the length: SSM, convolution, linear attention.

A cache holds what has been seen; `nbytes` counts that, not the room reserved for more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worthit.errors import InputError

if TYPE_CHECKING:
    from worthit.nn.tokens import Tokens

# Room grows by at least this many tokens at a time, and by half of what is there.
GROWTH_TOKENS = 64


class GrowingTensor:
    """A tensor that grows along dimension -2, in place while there is room."""

    def __init__(self) -> None:
        self._room: Tensor | None = None
        self._start = 0
        self.length = 0

    def append(self, new: Tensor) -> Tensor:
        """Add `new` `(..., n, width)` and return everything, `(..., length, width)`."""
        end = self._start + self.length + new.shape[-2]
        if self._room is None or end > self._room.shape[-2]:
            self._grow(new, self.length + new.shape[-2])
            end = self.length + new.shape[-2]
        assert self._room is not None
        self._room[..., self._start + self.length : end, :] = new
        self.length += new.shape[-2]
        return self.value

    def _grow(self, like: Tensor, end: int) -> None:
        """Room for `end` tokens and some more, in a new place: views of the old one stay valid."""
        room = max(end + GROWTH_TOKENS, end + end // 2)
        grown = like.new_empty((*like.shape[:-2], room, like.shape[-1]))
        if self._room is not None:
            grown[..., : self.length, :] = self.value
        self._room, self._start = grown, 0

    def reserve(self, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        """Have room for `shape[-2]` more; whether everything has moved for it."""
        end = self._start + self.length + shape[-2]
        if self._room is not None and end <= self._room.shape[-2] and not self._start:
            return False
        like = torch.empty(0, dtype=dtype) if self._room is None else self._room
        self._grow(like.new_empty((*shape[:-2], 0, shape[-1])), self.length + shape[-2])
        return True

    @property
    def room(self) -> Tensor:
        """What is kept, and behind it what is reserved."""
        assert self._room is not None, "nothing was appended"
        return self._room

    @property
    def value(self) -> Tensor:
        """Everything appended and kept, `(..., length, width)`."""
        assert self._room is not None, "nothing was appended"
        return self._room[..., self._start : self._start + self.length, :]

    def keep_last(self, n: int) -> None:
        """Forget all but the last `n`; nothing is moved."""
        if self.length > n:
            self._start += self.length - n
            self.length = n

    def truncate(self, n: int) -> None:
        """Forget all but the first `n`."""
        self.length = min(self.length, n)

    def keep_of_last(self, n: int, index: Tensor) -> None:
        """Of the last `n` rows keep those that `index` names from 0 on, in its order."""
        last = self.value[..., self.length - n :, :]
        # A copy first: where rows go to is where others come from.
        kept = last.index_select(-2, index)
        last[..., : len(index), :] = kept
        self.length += len(index) - n

    def keep(self, index: Tensor) -> None:
        """Keep the rows that `index` `(..., n)` names, in its order, head by head."""
        assert self._room is not None
        wide = index[..., None].expand(*index.shape, self._room.shape[-1])
        kept = self.value.gather(-2, wide)
        self._start, self.length = 0, index.shape[-1]
        self._room[..., : self.length, :] = kept

    def replace_by_last(self, index: Tensor) -> None:
        """Put the last row in the place of row `index` `(...,)`, and forget it at the end."""
        assert self._room is not None
        wide = index[..., None, None].expand(*index.shape, 1, self._room.shape[-1])
        self.value.scatter_(-2, wide, self.value[..., -1:, :])
        self.length -= 1

    def fork(self) -> GrowingTensor:
        """A copy that grows by itself."""
        copy = GrowingTensor()
        copy.length, copy._start = self.length, self._start
        copy._room = None if self._room is None else self._room.clone()
        return copy

    def select_rows(self, rows: Tensor) -> None:
        """Keep these batch rows, in this order (repeats allowed)."""
        if self._room is not None:
            self._room = self._room[rows]

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return 0 if self._room is None else self.value.numel() * self.value.element_size()


class KVCache:
    """Keys and values, `(batch, n_kv_heads, length, head_dim)`; the last `window` of them.

    `spare` tokens more are kept behind a window, so that as many can be taken back.
    """

    # Whether `observe` wants to be called, and whether what it leads to waits for `settle`.
    is_observing = False
    holds = False

    def __init__(self, window: int | None = None, *, spare: int = 0) -> None:
        self.window, self.spare = window, spare
        self.keys, self.values = GrowingTensor(), GrowingTensor()

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add this pass's keys and values; return all that its queries may see.

        With a window the tokens that this pass's first query still sees are returned, and only then
        forgotten: a prefill longer than the window is exact.
        """
        before = self.keys.length
        k, v = self.keys.append(keys), self.values.append(values)
        if self.window is not None:
            n_seen = min(before, self.window) + keys.shape[-2]
            k, v = k[..., -n_seen:, :], v[..., -n_seen:, :]
            self.keys.keep_last(self.window + self.spare)
            self.values.keep_last(self.window + self.spare)
        return k, v

    def observe(self, q: Tensor, scale: float, tokens: Tokens) -> None:
        """See the queries `(batch, n_heads, n, head_dim)` of the pass that was just appended."""

    def settle(self) -> None:
        """Nothing of what is here will be taken back."""

    def take_back(self, n: int) -> None:
        """Forget the last `n` tokens, as if they had never been there."""
        if self.window is not None and n > self.spare and self.keys.length >= self.window:
            raise InputError(
                f"a window of {self.window} tokens that spares {self.spare} cannot take back {n}: "
                "what they pushed out is gone; make its cache with as many to spare"
            )
        self.keys.truncate(self.keys.length - n)
        self.values.truncate(self.values.length - n)

    def keep_of_last(self, n: int, index: Tensor) -> None:
        """Of the last `n` tokens keep those that `index` names: a path of a tree."""
        if self.window is not None and n - len(index) > self.spare:
            raise InputError(
                f"a window of {self.window} tokens that spares {self.spare} cannot drop "
                f"{n - len(index)} of a tree; make its cache with as many to spare"
            )
        self.keys.keep_of_last(n, index)
        self.values.keep_of_last(n, index)

    def fork(self) -> KVCache:
        """A copy that grows by itself."""
        copy = KVCache(self.window, spare=self.spare)
        copy.keys, copy.values = self.keys.fork(), self.values.fork()
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values kept."""
        return self.keys.nbytes + self.values.nbytes

    def select_rows(self, rows: Tensor) -> None:
        """Keep these batch rows."""
        self.keys.select_rows(rows)
        self.values.select_rows(rows)


class LatentCache:
    """MLA's normalised latent and rotated shared key: `(batch, length, rank)` and rope width."""

    holds = False

    def __init__(self) -> None:
        self.latents, self.rotary_keys = GrowingTensor(), GrowingTensor()

    def append(self, latents: Tensor, rotary_keys: Tensor) -> tuple[Tensor, Tensor]:
        """Add this pass's latents and rotary keys; return all of them."""
        return self.latents.append(latents), self.rotary_keys.append(rotary_keys)

    def settle(self) -> None:
        """Nothing of what is here will be taken back."""

    def take_back(self, n: int) -> None:
        """Forget the last `n` tokens."""
        self.latents.truncate(self.latents.length - n)
        self.rotary_keys.truncate(self.rotary_keys.length - n)

    def keep_of_last(self, n: int, index: Tensor) -> None:
        """Of the last `n` tokens keep those that `index` names: a path of a tree."""
        self.latents.keep_of_last(n, index)
        self.rotary_keys.keep_of_last(n, index)

    def fork(self) -> LatentCache:
        """A copy that grows by itself."""
        copy = LatentCache()
        copy.latents, copy.rotary_keys = self.latents.fork(), self.rotary_keys.fork()
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return self.latents.nbytes + self.rotary_keys.nbytes

    def select_rows(self, rows: Tensor) -> None:
        """Keep these batch rows."""
        self.latents.select_rows(rows)
        self.rotary_keys.select_rows(rows)


class StateCache:
    """Named tensors of a fixed size, replaced by every pass; all absent before the first."""

    holds = False

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor | None:
        """The tensor called `name`; None before the first pass."""
        return self.state.get(name)

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.state[name] = value

    def settle(self) -> None:
        """Nothing of what is here will be taken back."""

    def take_back(self, n: int) -> None:
        """Refused: a state is not divided into tokens."""
        raise InputError(
            f"a recurrent state cannot take back its last {n} tokens; fork the cache before them"
        )

    def fork(self) -> StateCache:
        """A copy that goes on by itself: tensors are replaced, never changed."""
        copy = StateCache()
        copy.state = dict(self.state)
        return copy

    @classmethod
    def of_rows(cls, caches: Sequence[StateCache]) -> StateCache:
        """One cache whose batch rows are these, which all hold the same tensors."""
        together = cls()
        for name in caches[0].state:
            together.state[name] = torch.cat([cache.state[name] for cache in caches])
        return together

    def give_rows(self, caches: Sequence[StateCache]) -> None:
        """Each batch row becomes what one of `caches` holds."""
        for name, value in self.state.items():
            for cache, row in zip(caches, value.split(1), strict=True):
                cache.state[name] = row

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.state.values())

    def select_rows(self, rows: Tensor) -> None:
        """Keep these batch rows."""
        self.state = {name: value[rows] for name, value in self.state.items()}


MixerCache = KVCache | LatentCache | StateCache


class Cache:
    """The caches of a whole model: for each layer application, one a mixer.

    `length` counts the tokens seen. `is_real` remembers which of them were padding.
    """

    def __init__(self, layers: list[list[MixerCache]]) -> None:
        self.layers = layers
        self.length = 0
        self.is_real: Tensor | None = None
        # What `worthit.nn.native` remembers of where all this is, until it moves.
        self.stores: object = None

    def __iter__(self) -> Iterator[MixerCache]:
        return (cache for layer in self.layers for cache in layer)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is remembered."""
        return sum(cache.nbytes for cache in self)

    def select_rows(self, rows: Tensor) -> None:
        """Keep these batch rows, in this order: what beams and finished sequences need."""
        for cache in self:
            cache.select_rows(rows)
        if self.is_real is not None:
            self.is_real = self.is_real[rows]

    def take_back(self, n: int) -> None:
        """Forget the last `n` tokens of every sequence.

        Raises:
            InputError: a window or a state cannot.
        """
        for cache in self:
            cache.take_back(n)
        self.length -= n
        if self.is_real is not None:
            self.is_real = self.is_real[:, : self.length]

    def keep_of_last(self, n: int, index: Tensor) -> None:
        """Of the last `n` tokens keep those that `index` names from 0 on, in its order.

        Raises:
            InputError: a cache that has no single tokens to keep, or has let go of some.
        """
        for cache in self:
            keep = getattr(cache, "keep_of_last", None)
            if keep is None:
                raise InputError(
                    f"a {type(cache).__name__} cannot keep some of its last tokens and drop others "
                    "between them; draft chains, which are cut at the end"
                )
            keep(n, index)
        self.length -= n - len(index)
        assert self.is_real is None, "trees are of one sequence, and that is not padded"

    def fork(self) -> Cache:
        """A copy that goes on by itself."""
        copy = Cache([[cache.fork() for cache in layer] for layer in self.layers])
        copy.length, copy.is_real = self.length, self.is_real
        return copy

    def mask_of(self, n: int, attention_mask: Tensor | None, like: Tensor) -> Tensor | None:
        """The mask `(batch, length + n)` of everything seen and the `n` tokens to come.

        `attention_mask` covers either only the new tokens or everything.
        """
        total = self.length + n
        if attention_mask is not None and attention_mask.shape[1] == total:
            mask: Tensor | None = attention_mask.bool()
        elif attention_mask is None and self.is_real is None:
            mask = None
        else:
            batch = like.shape[0]
            ones = torch.ones(batch, n, dtype=torch.bool, device=like.device)
            new = ones if attention_mask is None else attention_mask.bool()
            old = self.is_real
            if old is None:
                old = torch.ones(batch, self.length, dtype=torch.bool, device=like.device)
            mask = torch.cat([old, new], dim=1)
        self.is_real = mask
        return mask
