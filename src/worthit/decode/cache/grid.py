"""Numbers on a grid of a few bits: groups that share a scale and, where it pays, a zero.

Liu et al. 2024, "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", arXiv:2402.02750,
section 3.1 (equation 1):

    Q(x) = round((x - z) / s),   z = min x,   s = (max x - min x) / (2^B - 1),   x' = Q(x) s + z

| paper | here |
|---|---|
| B | `bits` |
| G, group size | the length of the dimension that is reduced |
| z, s | `zero`, `scale`, stored in 16 bits |

Scale and zero are rounded first, such that the rounded grid still covers the group, and codes are
taken on the rounded grid: no element is then further from its code than half a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

# What a 16-bit number may be off by, relative and absolute: two of its last places.
ULP, TINY = 2.0**-10, 2.0**-23


def fit(x: Tensor, bits: int, dim: int, *, has_zero: bool) -> tuple[Tensor, Tensor | None]:
    """Scale and zero of each group along `dim`, which stays with length 1; fp16.

    Without a zero the grid is even about 0, from -(2^(bits-1) - 1) to 2^(bits-1) - 1.
    """
    wide = x.float()
    if not has_zero:
        step = wide.abs().amax(dim=dim, keepdim=True) / (2 ** (bits - 1) - 1)
        return _rounded_up(step), None
    low, high = wide.amin(dim=dim, keepdim=True), wide.amax(dim=dim, keepdim=True)
    zero = (low - low.abs() * ULP - TINY).half()
    return _rounded_up((high - zero.float()) / (2**bits - 1)), zero


def encode(x: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """Codes from 0 to 2^bits - 1, uint8, one an element."""
    wide, step = x.float(), scale.float()
    if zero is None:
        most = 2 ** (bits - 1) - 1
        # A group of zeros has no step.
        codes = torch.where(step > 0, wide / step, 0.0).round().clamp(-most, most) + most
    else:
        codes = torch.where(step > 0, (wide - zero.float()) / step, 0.0).round()
        codes = codes.clamp(0, 2**bits - 1)
    return codes.to(torch.uint8)


def decode(
    codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, like: torch.dtype
) -> Tensor:
    """The numbers that `codes` stand for."""
    if zero is None:
        return (codes.to(like) - (2 ** (bits - 1) - 1)) * scale.to(like)
    return torch.addcmul(zero.to(like), codes.to(like), scale.to(like))


def pack(codes: Tensor, bits: int) -> Tensor:
    """Several codes a byte: the last dimension is cut into as many pieces, laid over each other."""
    n = 8 // bits
    if n == 1:
        return codes
    pieces = codes.unflatten(-1, (n, -1))
    packed = pieces[..., 0, :].clone()
    for i in range(1, n):
        packed |= pieces[..., i, :] << (bits * i)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """What `pack` was given."""
    n = 8 // bits
    if n == 1:
        return packed
    mask = 2**bits - 1
    return torch.cat([(packed >> (bits * i)) & mask for i in range(n)], dim=-1)


def _rounded_up(step: Tensor) -> Tensor:
    """A 16-bit number not below `step`."""
    return (step * (1 + ULP) + TINY * (step > 0)).half()
