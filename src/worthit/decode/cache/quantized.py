"""Keys and values in few bits: values a scale a token, keys a scale a channel, the last ones whole.

Liu et al. 2024, KIVI, arXiv:2402.02750, sections 3.1 to 3.3 and algorithm 1. A few channels of the
keys are far larger than the rest in every token, so that one scale a token serves none; values have
no such channels, and attention mixes them by token.

| paper | here |
|---|---|
| per-channel keys, groups of G tokens | `by_channel`, `group` |
| per-token values, groups of G channels | `group` |
| residual of R recent tokens in full precision | `recent` |
| X_g and X_r | `quantized`, and what is left in `keys` and `values` |

Departures. The paper's residual of the keys fills up to R and is then emptied at once, and that of
the values is a window of exactly R; here both keep at least R tokens and give off whole groups of
the oldest, so that a query always finds R recent tokens whole. Groups begin at multiples of G, so
that codes do not depend on how the tokens came; nothing is quantized twice. Keys are quantized as
they are cached, after their rotation, as the reference does. Recent tokens are read whole, and so
are those of a pass among each other; where nothing stays whole (`recent` 0), tokens are read as
they are stored from the first moment on, so that numbers depend on no chunk, draft or prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worthit.decode.cache import grid
from worthit.errors import InputError, unknown_name
from worthit.nn.cache import GrowingTensor, KVCache


@dataclass(frozen=True, kw_only=True)
class CacheFormat:
    """How keys and values are stored.

    Attributes:
        bits: 8, 4 or 2.
        group: elements that share a scale.
        has_zero: whether they share a zero too.
        by_channel: keys are grouped along the tokens, and not along the channels.
        recent: tokens at the end that stay as they are.
        in_cost: what `worthit.spec.formats` calls it; None where it has no name there.
    """

    bits: int
    group: int
    has_zero: bool
    by_channel: bool = False
    recent: int = 0
    in_cost: str | None = None

    @property
    def bits_per_element(self) -> float:
        """Bits of a stored element, with its share of scale and zero."""
        return self.bits + (32 if self.has_zero else 16) / self.group

    @property
    def is_by_token(self) -> bool:
        """Whether every token is quantized by itself, and at once."""
        return not self.by_channel and not self.recent

    @property
    def tokens_at_once(self) -> int:
        """Tokens that are quantized together."""
        return self.group if self.by_channel else 1

    def n_quantized(self, n_tokens: int) -> int:
        """How many of the first of `n_tokens` are."""
        return max(0, n_tokens - self.recent) // self.tokens_at_once * self.tokens_at_once

    def check(self, head_dim: int) -> None:
        """Raise InputError where heads of `head_dim` channels do not divide into groups."""
        if head_dim % self.group and not (self.by_channel and self.group % head_dim == 0):
            raise InputError(
                f"cache_format: groups of {self.group} channels must divide head_dim, got "
                f"{head_dim}; take a format with smaller groups"
            )


FORMATS = {
    "int8": CacheFormat(bits=8, group=32, has_zero=False, in_cost="int8-g32"),
    "int4": CacheFormat(bits=4, group=32, has_zero=True, in_cost="q4_1"),
    "kivi-int4": CacheFormat(
        bits=4, group=64, has_zero=True, by_channel=True, recent=64, in_cost="int4-g64"
    ),
    "kivi-int2": CacheFormat(bits=2, group=32, has_zero=True, by_channel=True, recent=64),
}


def cache_format(name: str) -> CacheFormat:
    """The format called `name`.

    Raises:
        UnknownName: there is none.
    """
    if name not in FORMATS:
        raise unknown_name("cache format", name, FORMATS)
    return FORMATS[name]


def encoded(x: Tensor, form: CacheFormat, *, by_channel: bool) -> tuple[Tensor, Tensor]:
    """Packed codes of `x` `(..., n, head_dim)`, and scale and zero side by side.

    The latter are `(..., n, parts * head_dim / group)`, a row a token; grouped along the tokens
    `(..., n / group, parts * head_dim)`.
    """
    dim = -2 if by_channel else -1
    shaped = x.unflatten(dim, (-1, form.group))
    scale, zero = grid.fit(shaped, form.bits, dim, has_zero=form.has_zero)
    codes = grid.encode(shaped, scale, zero, form.bits).view_as(x)
    both = scale if zero is None else torch.cat([scale, zero], dim=dim)
    return grid.pack(codes, form.bits), both.flatten(-2)


def decoded(
    packed: Tensor, scales: Tensor, form: CacheFormat, dtype: torch.dtype, *, by_channel: bool
) -> Tensor:
    """What `encoded` remembers, `(..., n, head_dim)`."""
    dim = -2 if by_channel else -1
    codes = grid.unpack(packed, form.bits).unflatten(dim, (-1, form.group))
    n_parts = 2 if form.has_zero else 1
    if by_channel:
        both = scales.unflatten(-1, (n_parts, -1))
        scale, zero = both[..., :1, :], both[..., 1:, :]
    else:
        both = scales.unflatten(-1, (-1, n_parts))
        scale, zero = both[..., :1], both[..., 1:]
    x = grid.decode(codes, scale, zero if form.has_zero else None, form.bits, dtype)
    return x.flatten(dim - 1, dim)


class Codes:
    """Tokens on their grids: packed codes, and scale and zero side by side.

    Grouped along the channels every token has its own scales; grouped along the tokens, every
    `group` tokens have theirs.
    """

    def __init__(self, form: CacheFormat, *, by_channel: bool) -> None:
        self.form, self.by_channel = form, by_channel
        self.packed, self.scales = GrowingTensor(), GrowingTensor()

    @property
    def length(self) -> int:
        """Tokens."""
        return self.packed.length

    def append(self, x: Tensor) -> None:
        """Quantize `x` `(..., n, head_dim)`, whole groups, and add it."""
        packed, scales = encoded(x, self.form, by_channel=self.by_channel)
        self.packed.append(packed)
        self.scales.append(scales)

    def value(self, dtype: torch.dtype) -> Tensor:
        """All tokens as they are remembered, `(..., length, head_dim)`."""
        return decoded(
            self.packed.value, self.scales.value, self.form, dtype, by_channel=self.by_channel
        )

    @property
    def parts(self) -> tuple[GrowingTensor, GrowingTensor]:
        """Both tensors: a row a token each, unless scales are for several."""
        return self.packed, self.scales

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.packed.nbytes + self.scales.nbytes

    def fork(self) -> Codes:
        """A copy that grows by itself."""
        copy = Codes(self.form, by_channel=self.by_channel)
        copy.packed, copy.scales = self.packed.fork(), self.scales.fork()
        return copy


class QuantizedKV(KVCache):
    """Keys and values in `form`; `keys` and `values` hold the recent tokens, which are whole."""

    def __init__(self, form: CacheFormat) -> None:
        super().__init__()
        self.form = form
        self.quantized = (
            Codes(form, by_channel=form.by_channel),
            Codes(form, by_channel=False),
        )

    @property
    def length(self) -> int:
        """Tokens, quantized and whole."""
        return self.quantized[0].length + self.keys.length

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add this pass's keys and values; return all that is kept of them."""
        if self.form.is_by_token:
            for codes, new in zip(self.quantized, (keys, values), strict=True):
                codes.append(new)
            return self.quantized[0].value(keys.dtype), self.quantized[1].value(values.dtype)
        seen = []
        for codes, recent, new in zip(
            self.quantized, (self.keys, self.values), (keys, values), strict=True
        ):
            whole = recent.append(new)
            seen.append(
                torch.cat([codes.value(new.dtype), whole], dim=-2) if codes.length else whole
            )
        if not self.holds:
            self.settle()
        return seen[0], seen[1]

    def settle(self) -> None:
        """Quantize what is recent no longer; while a pass may be taken back, that waits."""
        n = self.form.n_quantized(self.length) - self.quantized[0].length
        if n > 0:
            for codes, recent in zip(self.quantized, (self.keys, self.values), strict=True):
                codes.append(recent.value[..., :n, :])
                recent.keep_last(recent.length - n)

    def take_back(self, n: int) -> None:
        """Forget the last `n` tokens: recent ones, or any where each has scales of its own.

        Raises:
            InputError: they share scales with tokens that stay.
        """
        beyond = n - self.keys.length
        if beyond > 0 and self.form.by_channel:
            raise InputError(
                f"cannot take back {n} tokens of which {beyond} share scales with earlier ones; "
                f"keep at least as many recent ones (recent={self.form.recent})"
            )
        for codes, recent in zip(self.quantized, (self.keys, self.values), strict=True):
            recent.truncate(max(0, recent.length - n))
            if beyond > 0:
                for part in codes.parts:
                    part.truncate(part.length - beyond)

    def fork(self) -> QuantizedKV:
        """A copy that grows by itself."""
        copy = QuantizedKV(self.form)
        copy.holds = self.holds
        copy.keys, copy.values = self.keys.fork(), self.values.fork()
        copy.quantized = (self.quantized[0].fork(), self.quantized[1].fork())
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and recent tokens."""
        return sum(codes.nbytes for codes in self.quantized) + super().nbytes

    def select_rows(self, rows: Tensor) -> None:
        """Keep these batch rows."""
        super().select_rows(rows)
        for codes in self.quantized:
            for part in codes.parts:
                part.select_rows(rows)
