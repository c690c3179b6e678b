"""Small floats against torch, ml_dtypes and gfloat: every code, ties, subnormals, the ends."""

from __future__ import annotations

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from worthit.train.precision.floats import (
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    FLOATS,
    Float,
    decode,
    encode,
    meanings,
    round_to,
)

GFLOAT = {name: getattr(gfloat.formats, f"format_info_ocp_{name}") for name in FLOATS}
NUMPY = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
TORCH = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
formats = pytest.mark.parametrize("format", FLOATS.values(), ids=FLOATS)


def values(format: Float) -> Tensor:
    """Random numbers of every size, every code, every middle between two codes, and around them."""
    g = torch.Generator().manual_seed(0)
    finite = meanings(format)[meanings(format).isfinite()].sort().values
    middles = (finite[1:] + finite[:-1]) / 2
    near = torch.cat([finite, middles])
    spread = torch.exp2(40 * torch.rand(4000, generator=g) - 25) * torch.randn(4000, generator=g)
    tiny = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 2.0**-126])
    ends = [torch.nextafter(near, torch.full_like(near, end)) for end in (-torch.inf, torch.inf)]
    return torch.cat([near, *ends, spread, tiny])


def within(x: Tensor, format: Float) -> Tensor:
    return x.clamp(-format.largest, format.largest)


@formats
def test_every_code_means_what_ml_dtypes_and_gfloat_say(format: Float) -> None:
    codes = np.arange(2**format.bits, dtype=np.uint8)
    want = codes.view(NUMPY[format.name]).astype(np.float32)
    ours = decode(torch.from_numpy(codes), format).numpy()
    np.testing.assert_array_equal(ours, want)
    np.testing.assert_array_equal(np.signbit(ours), np.signbit(want))
    theirs = [gfloat.decode_float(GFLOAT[format.name], int(c)).fval for c in codes]
    np.testing.assert_array_equal(ours, np.array(theirs, dtype=np.float32))
    assert format.bits == GFLOAT[format.name].k
    assert format.largest == GFLOAT[format.name].max
    assert format.largest_exponent == GFLOAT[format.name].emax


@formats
def test_every_code_is_made_again(format: Float) -> None:
    codes = torch.arange(2**format.bits, dtype=torch.uint8)
    numbers = meanings(format)
    again = encode(numbers, format)
    # One NaN stands for all.
    is_number = ~numbers.isnan()
    assert torch.equal(again[is_number], codes[is_number])
    assert decode(again[~is_number], format).isnan().all()


@formats
def test_rounding_is_gfloats(format: Float) -> None:
    x = values(format)
    want = [gfloat.round_float(GFLOAT[format.name], float(v), sat=True) for v in x]
    got = round_to(x, format)
    torch.testing.assert_close(got, torch.tensor(want), rtol=0, atol=0)
    assert torch.equal(got.signbit(), x.signbit())
    code = [gfloat.encode_float(GFLOAT[format.name], v) for v in want]
    assert encode(got, format).tolist() == code


@formats
def test_rounding_is_ml_dtypes_within_range(format: Float) -> None:
    x = within(values(format), format)
    want = x.numpy().astype(NUMPY[format.name]).astype(np.float32)
    np.testing.assert_array_equal(round_to(x, format).numpy(), want)


@pytest.mark.parametrize("format", [E4M3, E5M2], ids=["e4m3", "e5m2"])
def test_rounding_is_torchs_cast(format: Float) -> None:
    x = within(values(format), format)
    cast = x.to(TORCH[format.name])
    torch.testing.assert_close(round_to(x, format), cast.float(), rtol=0, atol=0)
    assert torch.equal(encode(round_to(x, format), format), cast.view(torch.uint8))


@formats
def test_what_is_beyond_becomes_the_largest_and_nan_stays(format: Float) -> None:
    x = torch.tensor([torch.inf, -torch.inf, 1e30, -format.largest * 1.01, torch.nan])
    largest = format.largest
    assert round_to(x, format)[:4].tolist() == [largest, -largest, largest, -largest]
    assert round_to(x, format)[4].isnan()


numbers = st.floats(-1e6, 1e6, width=32)
named = st.sampled_from(list(FLOATS.values()))


@given(named, numbers, numbers)
def test_rounding_keeps_order(format: Float, a: float, b: float) -> None:
    low, high = round_to(torch.tensor(sorted((a, b))), format)
    assert low <= high


@given(named, numbers)
def test_rounding_is_done_once_is_odd_and_is_near(format: Float, a: float) -> None:
    x = torch.tensor(a)
    once = round_to(x, format)
    assert torch.equal(round_to(once, format), once)
    assert torch.equal(round_to(-x, format), -once)
    inside = within(x, format)
    half_step = 2.0 ** (-1 - format.mantissa_bits)
    smallest = 2.0**format.smallest_exponent
    assert (once - inside).abs() <= half_step * max(float(inside.abs()), smallest)


@formats
def test_stochastic_rounding_takes_a_neighbour_and_is_unbiased(format: Float) -> None:
    torch.manual_seed(0)
    finite = meanings(format)[meanings(format) >= 0].unique()
    low, high = finite[:-1][-6:-1], finite[1:][-6:-1]
    x = low + (high - low) * torch.tensor([0.1, 0.25, 0.5, 0.7, 0.95])
    n = 20_000
    drawn = round_to(x.expand(n, -1), format, is_stochastic=True)
    assert ((drawn == low) | (drawn == high)).all()
    # Five standard errors of a mean of n draws between two neighbours.
    error = 5 * (high - low) / 2 / n**0.5
    assert ((drawn.mean(dim=0) - x).abs() < error).all()
    # Control: to the nearest, the same values are off by far more.
    assert ((round_to(x, format) - x).abs() > error)[[0, 1, 3]].all()


@formats
def test_stochastic_rounding_leaves_what_is_exact(format: Float) -> None:
    finite = meanings(format)[meanings(format).isfinite()].repeat(50)
    assert torch.equal(round_to(finite, format, is_stochastic=True), finite)


def test_names() -> None:
    assert [f.name for f in (E4M3, E5M2, E3M2, E2M3, E2M1)] == list(FLOATS)
