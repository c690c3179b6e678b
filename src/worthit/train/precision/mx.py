"""Microscaling: a power-of-two scale for every 32 elements that share it.

OCP Microscaling Formats (MX) Specification, version 1.0, 2023, sections 5 and 6; Rouhani et al.
2023, "Microscaling Data Formats for Deep Learning", arXiv:2310.10537, algorithm 1:

    X = 2^(floor(log2 max |V|) - emax),    P_i = round(V_i / X),    V_i ~ X P_i

| specification | here |
|---|---|
| V, a block of k = 32 | 32 neighbours along the summed axis |
| X, in E8M0 | `scales`: exponent + 127, and 255 for NaN |
| P_i, in E5M2, E4M3, E3M2, E2M3, E2M1 | `codes` |
| emax | `largest_exponent` of the element's format |

`rule="floor"` is that equation: what it leaves above the largest element is clipped, up to a
quarter of the range. `rule="up"` takes the smallest X that clips nothing, which Mishra et al. 2025,
"Recipes for Pre-training LLMs with MXFP8", arXiv:2506.08027, find that long runs need. A NaN or an
infinity, which the specification leaves to implementations, makes its block NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from worthit.train.precision.floats import Float, decode, encode, round_

Rule = Literal["floor", "up"]
BLOCK = 32
SCALE_BIAS = 127
NAN_SCALE = 255


def quantize(
    x: Tensor,
    format: Float,
    *,
    axis: int = -1,
    rule: Rule = "floor",
    is_stochastic: bool = False,
) -> Tensor:
    """`x` as MX blocks of `format` along `axis` hold it: same shape and type, fewer values.

    Exact in fp32, and in bf16 but for scales beyond its range. An axis that 32 does not divide ends
    in a shorter block. With `is_stochastic` (see `round_to`) only `rule="up"` is unbiased: it clips
    nothing.
    """
    blocks = blocked(x.detach().float(), axis)
    scale = power_of_two(scale_exponents(blocks, format, rule, axis))
    rounded = round_(blocks / scale, format, is_stochastic=is_stochastic).mul_(scale)
    return unblocked(rounded, x.shape[axis], axis).to(x.dtype)


@dataclass(frozen=True)
class Packed:
    """MX blocks as bytes: a scale for each block, and the codes of its elements.

    Attributes:
        codes: `(..., blocks, 4 bits)` uint8: the elements of a block from its lowest bit on, so
            that of two in a byte the first is the lower half.
        scales: `(..., blocks)` uint8, E8M0.
        length: of the packed axis, which was the last.
    """

    format: Float
    codes: Tensor
    scales: Tensor
    length: int

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return int(self.codes.nbytes + self.scales.nbytes)

    def unpack(self) -> Tensor:
        """The values, `(..., length)` in fp32."""
        values = decode(unpacked(self.codes, self.format.bits), self.format)
        exponents = self.scales.int() - SCALE_BIAS
        scale = power_of_two(exponents).masked_fill(self.scales == NAN_SCALE, torch.nan)
        return unblocked(values * scale[..., None], self.length, -1)


def pack(x: Tensor, format: Float, *, rule: Rule = "floor") -> Packed:
    """`x` `(..., length)` as bytes; `pack(x, ...).unpack()` is `quantize(x, ...)`."""
    blocks = blocked(x.detach().float(), -1)
    exponents = scale_exponents(blocks, format, rule, -1)
    is_nan = blocks.abs().amax(dim=-1, keepdim=True).isfinite().logical_not()
    elements = round_(blocks / power_of_two(exponents), format).masked_fill(is_nan, 0.0)
    codes = packed(encode(elements, format), format.bits)
    scales = (exponents + SCALE_BIAS).to(torch.uint8).masked_fill(is_nan, NAN_SCALE)
    return Packed(format, codes, scales[..., 0], x.shape[-1])


def blocked(x: Tensor, axis: int, size: int = BLOCK) -> Tensor:
    """`x` with `axis` cut in blocks of `size`, `(..., blocks, size, ...)`, the last one padded."""
    axis = axis % x.ndim
    missing = -x.shape[axis] % size
    if missing:
        x = pad(x, (0, 0) * (x.ndim - 1 - axis) + (0, missing))
    return x.unflatten(axis, (-1, size))


def unblocked(blocks: Tensor, length: int, axis: int) -> Tensor:
    """What `blocked` cut, at its old `length`."""
    axis = axis % (blocks.ndim - 1)
    return blocks.flatten(axis, axis + 1).narrow(axis, 0, length)


def scale_exponents(blocks: Tensor, format: Float, rule: Rule, axis: int) -> Tensor:
    """The exponents of X, int32, of `blocked(x, axis)`; 255 - 127 where a block is no number."""
    axis = axis % (blocks.ndim - 1)
    largest = blocks.abs().amax(dim=axis + 1, keepdim=True)
    fraction, exponent = torch.frexp(largest)  # largest = fraction 2^exponent, from 1/2 on
    exponent = exponent - 1 - format.largest_exponent
    if rule == "up":
        exponent = exponent + (2 * fraction > format.largest * 2.0**-format.largest_exponent).int()
    exponent = torch.where(largest > 0, exponent, -SCALE_BIAS).clamp(-SCALE_BIAS, SCALE_BIAS)
    return torch.where(largest.isfinite(), exponent, NAN_SCALE - SCALE_BIAS)


def power_of_two(exponents: Tensor) -> Tensor:
    """2^exponents in fp32; NaN for the exponent of a NaN scale."""
    is_nan = exponents == NAN_SCALE - SCALE_BIAS
    power = torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents)
    return power.masked_fill(is_nan, torch.nan)


def packed(codes: Tensor, bits: int) -> Tensor:
    """`(..., n)` codes of 4, 6 or 8 bits as bytes `(..., n bits / 8)`, the first lowest."""
    per_group, group_bytes = (8 // bits, 1) if 8 % bits == 0 else (4, 3)
    groups = codes.int().unflatten(-1, (-1, per_group))
    shifts = bits * torch.arange(per_group, device=codes.device)
    words = (groups << shifts).sum(dim=-1, keepdim=True)
    byte_shifts = 8 * torch.arange(group_bytes, device=codes.device)
    return ((words >> byte_shifts) & 0xFF).to(torch.uint8).flatten(-2)


def unpacked(bytes_: Tensor, bits: int) -> Tensor:
    """What `packed` packed."""
    per_group, group_bytes = (8 // bits, 1) if 8 % bits == 0 else (4, 3)
    groups = bytes_.int().unflatten(-1, (-1, group_bytes))
    byte_shifts = 8 * torch.arange(group_bytes, device=bytes_.device)
    words = (groups << byte_shifts).sum(dim=-1, keepdim=True)
    shifts = bits * torch.arange(per_group, device=bytes_.device)
    return ((words >> shifts) & (2**bits - 1)).to(torch.uint8).flatten(-2)
