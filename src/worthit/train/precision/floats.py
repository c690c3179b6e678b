"""Small floating-point formats: rounding to them, their codes, and what a code means.

OCP 8-bit Floating Point Specification (OFP8), revision 1.0, 2023 (E4M3, E5M2); OCP Microscaling
Formats (MX) Specification, version 1.0, 2023, section 5.3 (E2M1, E2M3, E3M2). A code is sign,
exponent field e and mantissa field m, and means

    (-1)^sign 2^(e - bias) (1 + m / 2^M),   or   (-1)^sign 2^(1 - bias) m / 2^M  where e = 0

E4M3 and E5M2 spend codes on NaN, E5M2 on infinity; the others have neither. Rounding here is to
the nearest, ties to even, or stochastic; what is larger than the largest becomes the largest, as
both specifications recommend for training, and NaN stays NaN where the format has one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

EXPONENT_MASK = 0x7F800000  # of fp32
# Stochastic rounding is unbiased to this part of a step.
DRAWS = 2**20


@dataclass(frozen=True)
class Float:
    """A format of `1 + exponent_bits + mantissa_bits` bits; `largest` is its largest number."""

    name: str
    exponent_bits: int
    mantissa_bits: int
    largest: float
    nan_code: int | None = None
    infinity_code: int | None = None

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def smallest_exponent(self) -> int:
        """1 - bias: the exponent of the smallest normal number, and of all subnormal ones."""
        return 2 - (1 << (self.exponent_bits - 1))

    @property
    def largest_exponent(self) -> int:
        """The exponent of the largest number."""
        return math.frexp(self.largest)[1] - 1


E4M3 = Float("e4m3", 4, 3, 448.0, nan_code=0x7F)
E5M2 = Float("e5m2", 5, 2, 57344.0, nan_code=0x7E, infinity_code=0x7C)
E3M2 = Float("e3m2", 3, 2, 28.0)
E2M3 = Float("e2m3", 2, 3, 7.5)
E2M1 = Float("e2m1", 2, 1, 6.0)
FLOATS = {f.name: f for f in (E4M3, E5M2, E3M2, E2M3, E2M1)}


def round_to(x: Tensor, format: Float, *, is_stochastic: bool = False) -> Tensor:
    """The numbers of `format` that `x` rounds to, in fp32 and without gradient.

    Args:
        x: any shape, taken as fp32.
        format: what to round to; infinities become its largest number.
        is_stochastic: round up with the probability that makes the expected value `x` (Gupta et
            al. 2015, "Deep Learning with Limited Numerical Precision", arXiv:1502.02551, section
            3), instead of to the nearest. Draws from torch's generator.
    """
    return round_(x.detach().float(), format, is_stochastic=is_stochastic)


def round_(x: Tensor, format: Float, *, is_stochastic: bool = False) -> Tensor:
    """`round_to` of fp32, as few temporaries as there can be: they are what rounding costs."""
    x = x.clamp(-format.largest, format.largest)
    step = _step(x, format)
    x.div_(step)
    if is_stochastic:
        # Coarse enough that a sum with the few steps of a small float is exact.
        draw = torch.rand_like(x).mul_(DRAWS).floor_().div_(DRAWS)
        x.add_(draw).floor_()
    else:
        x.round_()
    return x.mul_(step)


def encode(x: Tensor, format: Float) -> Tensor:
    """The codes, in uint8, of numbers that are in `format`, as `round_to` leaves them."""
    step = _step(x, format)
    # A code without its sign counts the numbers from zero up: 2^M of them for each exponent.
    exponent = torch.frexp(step).exponent - 1 + format.mantissa_bits
    n_below = (exponent - format.smallest_exponent) << format.mantissa_bits
    code = n_below + (x.abs() / step).to(torch.int32)
    if format.infinity_code is not None:
        code = torch.where(x.isinf(), format.infinity_code, code)
    if format.nan_code is not None:
        code = torch.where(x.isnan(), format.nan_code, code)
    sign = torch.signbit(x).to(torch.int32) << (format.bits - 1)
    return (code | sign).to(torch.uint8)


def decode(codes: Tensor, format: Float) -> Tensor:
    """What `codes` mean, in fp32."""
    return meanings(format).to(codes.device)[codes.long()]


@cache
def meanings(format: Float) -> Tensor:
    """The number of every code, `(2 ** bits,)` in fp32."""
    code = torch.arange(2**format.bits)
    m = format.mantissa_bits
    magnitude = code & (2 ** (format.bits - 1) - 1)
    exponent, mantissa = magnitude >> m, magnitude & (2**m - 1)
    is_normal = (exponent > 0).int()
    significand = (mantissa + (is_normal << m)).float()
    power = exponent.clamp(min=1) - 1 + format.smallest_exponent - m
    value = torch.ldexp(significand, power)
    if format.infinity_code is not None:
        value[magnitude == format.infinity_code] = torch.inf
    # What lies beyond the largest number, infinity apart, is NaN.
    value[value.isfinite() & (value > format.largest)] = torch.nan
    return torch.where(code >> (format.bits - 1) == 1, -value, value)


def _step(x: Tensor, format: Float) -> Tensor:
    """From each of `x`, in fp32, to its next larger neighbour in `format`, in magnitude."""
    # Masked down to its exponent field, a float is the power of two below it.
    power = (x.view(torch.int32) & EXPONENT_MASK).view(torch.float32)
    return power.clamp(min=2.0**format.smallest_exponent).mul_(2.0**-format.mantissa_bits)
