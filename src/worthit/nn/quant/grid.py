"""Stored numbers: which values a code stands for, how a scale is chosen, how codes are packed.

A `Grid` is one number format of `worthit.spec.formats` as arithmetic. `group` columns of a row
share a scale, and a zero where the format has one:

    value = code * scale                        int8, fp8, ternary
    value = (code - 8) * scale (+ zero)         int4, codes 0 to 15

The zero is the value of code 8, as the kernels of PyTorch have it; ggml's Q4_1 stores the value of
code 0 instead, which is `zero - 8 * scale`.

Scales are those of Dettmers et al. 2022, arXiv:2208.07339, section 2.1 (absmax) for int8; the
greatest of a group's numbers on code 0 for int4 without zeros (ggml's Q4_0), the range of a group
on 0 to 15 with them; absmax on the greatest finite number for fp8 E4M3 (Micikevicius et al. 2022,
arXiv:2209.05433, table 1); the mean of absolute values of a whole matrix for ternary (Ma et al.
2024, arXiv:2402.17764, equations 1 to 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from worthit.errors import unknown_name

# The value of this code of four bits is the zero.
CENTRE = 8
# Codes are packed by blocks of so many columns, as ggml packs its own.
BLOCK = 32
E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
# No scale is below it, for what is divided by it may be all zeros; fp16 has nothing so small.
TINY = 1e-12
TINY_FP16 = 2.0**-24


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One format.

    Attributes:
        name: in `worthit.spec.formats.FORMATS`.
        kind: `int`, `float` (E4M3) or `ternary`.
        bits: of a stored code.
        group: columns that share a scale; None for all of a row.
        has_zeros: whether a group has a zero too.
    """

    name: str
    kind: Literal["int", "float", "ternary"] = "int"
    bits: int = 8
    group: int | None = None
    has_zeros: bool = False

    def fits(self, in_features: int) -> bool:
        """Whether rows of `in_features` can be stored: whole groups, whole blocks of codes."""
        return in_features % (self.group or 1) == 0 and (self.bits == 8 or in_features % BLOCK == 0)

    def n_groups(self, in_features: int) -> int:
        """Scales of one row."""
        return 1 if self.group is None else in_features // self.group

    def scales_shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Of the scales, and of the zeros."""
        return (out_features, self.n_groups(in_features))

    def codes_shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Of the packed codes."""
        return (out_features, in_features * self.bits // 8)

    @property
    def codes_dtype(self) -> torch.dtype:
        """Of the packed codes; fp8 is kept as bytes, which no change of a model's type touches."""
        return torch.int8 if self.kind == "int" and self.bits == 8 else torch.uint8

    def groups(self, weight: Tensor) -> Tensor:
        """`(out, in)` as `(out, groups, columns of a group)`."""
        return weight.unflatten(-1, (self.n_groups(weight.shape[-1]), -1))

    def fit(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Scales and zeros of `(out, in)` weights, each `scales_shape`, rounded to `dtype`."""
        if self.kind == "ternary":
            # One number a matrix, kept for every row: rows of several matrices can be one product.
            mean = weight.float().abs().mean()
            return self._stored(mean.expand(weight.shape[0], 1), dtype), None
        grouped = self.groups(weight.float())
        if self.has_zeros:
            low, high = grouped.amin(-1), grouped.amax(-1)
            scales = self._stored((high - low) / (2**self.bits - 1), dtype)
            return scales, (low + CENTRE * scales.float()).to(dtype)
        if self.kind == "int" and self.bits == 4:
            # Sixteen codes are not symmetric: the greatest number gets the lone one at the end.
            at = grouped.abs().argmax(-1, keepdim=True)
            extreme = grouped.gather(-1, at)[..., 0]
            return self._stored(extreme / -CENTRE, dtype), None
        top = E4M3_MAX if self.kind == "float" else 2 ** (self.bits - 1) - 1
        return self._stored(grouped.abs().amax(-1) / top, dtype), None

    def _stored(self, scales: Tensor, dtype: torch.dtype) -> Tensor:
        tiny = TINY_FP16 if dtype == torch.float16 else TINY
        return torch.where(scales.abs() < tiny, torch.full_like(scales, tiny), scales).to(dtype)

    def encode(self, weight: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
        """The nearest codes, one a number: int8, or uint8 for int4, or E4M3.

        Args:
            weight: any shape.
            scales, zeros: of a shape that broadcasts with it.
        """
        x = weight.float()
        if zeros is not None:
            x = x - zeros.float()
        x = x / scales.float()
        if self.kind == "float":
            return x.clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)
        if self.kind == "ternary":
            return x.round().clamp(-1, 1).to(torch.int8)
        if self.bits == 4:
            return (x + CENTRE).round().clamp(0, 15).to(torch.uint8)
        return x.round().clamp(-127, 127).to(torch.int8)

    def decode(self, codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
        """What `codes` stand for, in fp32."""
        x = codes.float()
        if self.kind == "int" and self.bits == 4:
            x = x - CENTRE
        x = x * scales.float()
        return x if zeros is None else x + zeros.float()

    def pack(self, codes: Tensor) -> Tensor:
        """Codes `(out, in)` as they are stored."""
        if self.kind == "float":
            return codes.view(torch.uint8)
        if self.kind == "ternary":
            return pack(codes.to(torch.uint8) + 1, 2)
        return pack(codes, 4) if self.bits == 4 else codes

    def unpack(self, packed: Tensor) -> Tensor:
        """`pack` undone."""
        if self.kind == "float":
            return packed.view(E4M3)
        if self.kind == "ternary":
            return unpack(packed, 2).to(torch.int8) - 1
        return unpack(packed, 4) if self.bits == 4 else packed


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes below `2**bits`, `(..., in)`, several a byte: `(..., in * bits / 8)`, uint8.

    By blocks of 32 columns: of a block's bytes the i-th holds the columns i, i + n, ... with n
    bytes a block, the first in its lowest bits. For 4 bits that is ggml's order.
    """
    n_bytes = BLOCK * bits // 8
    parts = codes.to(torch.uint8).unflatten(-1, (-1, 8 // bits, n_bytes)).unbind(-2)
    packed = parts[0].clone()
    for i, part in enumerate(parts[1:], 1):
        packed |= part << (bits * i)
    return packed.flatten(-2)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """`pack` undone."""
    n_bytes, mask = BLOCK * bits // 8, 2**bits - 1
    blocks = packed.unflatten(-1, (-1, n_bytes))
    parts = [(blocks >> (bits * i)) & mask for i in range(8 // bits)]
    return torch.stack(parts, dim=-2).flatten(-3)


GRIDS: dict[str, Grid] = {
    grid.name: grid
    for grid in (
        Grid(name="int8"),
        Grid(name="int8-g32", group=32),
        Grid(name="int4-g32", bits=4, group=32),
        Grid(name="int4-g64", bits=4, group=64, has_zeros=True),
        Grid(name="int4-g128", bits=4, group=128, has_zeros=True),
        Grid(name="q4_1", bits=4, group=32, has_zeros=True),
        Grid(name="fp8", kind="float"),
        Grid(name="ternary", kind="ternary", bits=2),
    )
}


# Narrower groups for rows that a format's own do not divide.
_NARROWER = {"int4-g128": "int4-g64", "int4-g64": "int4-g32", "q4_1": "int4-g32"}


def fitting(grid: Grid, in_features: int) -> Grid | None:
    """`grid`, or the one of its width with the widest groups that divide rows of `in_features`."""
    while not grid.fits(in_features):
        narrower = _NARROWER.get(grid.name)
        if narrower is None:
            return None
        grid = GRIDS[narrower]
    return grid


def grid_of(name: str) -> Grid:
    """The grid of the format called `name`.

    Raises:
        UnknownName: a format in which no weights are stored here.
    """
    if name not in GRIDS:
        raise unknown_name("format of stored weights", name, GRIDS)
    return GRIDS[name]
