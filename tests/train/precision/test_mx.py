"""MX blocks against gfloat and a loop over the specification, bit for bit; bytes as they say."""

from __future__ import annotations

import math
from typing import Any

import gfloat.formats
import numpy as np
import pytest
import torch
from gfloat import compute_scale_amax, quantize_block
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor
from torch.func import vmap

from worthit.spec.formats import format_of
from worthit.train.precision import mx
from worthit.train.precision.floats import E2M1, E3M2, E4M3, E5M2, FLOATS, Float, meanings

BLOCKS = {
    "e4m3": gfloat.formats.format_info_mxfp8_e4m3,
    "e5m2": gfloat.formats.format_info_mxfp8_e5m2,
    "e3m2": gfloat.formats.format_info_mxfp6_e3m2,
    "e2m3": gfloat.formats.format_info_mxfp6_e2m3,
    "e2m1": gfloat.formats.format_info_mxfp4_e2m1,
}
formats = pytest.mark.parametrize("format", FLOATS.values(), ids=FLOATS)
named = st.sampled_from(list(FLOATS.values()))
RULES: tuple[Any, ...] = ("floor", "up")


def rows() -> dict[str, Tensor]:
    """Blocks of many sizes, and those that go wrong."""
    g = torch.Generator().manual_seed(0)
    sizes = torch.exp2(torch.linspace(-140, 120, 40))[:, None]
    plain = torch.randn(60, 32, generator=g)
    ties = torch.randint(-16, 17, (20, 32), generator=g) / 4
    wide = torch.exp2(60 * torch.rand(20, 32, generator=g) - 30) * plain[:20].sign()
    spike = plain[:4] * 1e-6
    spike[:, 7] = torch.tensor([1.0, 1.75, 1.9999999, 448.0])
    return {
        "plain": plain,
        "of any size": sizes * plain[:40],
        "ties": ties,
        "wide": wide,
        "one outlier": spike,
        "powers of two": torch.exp2(torch.arange(32.0) - 16).expand(1, -1),
        "just below powers of two": torch.nextafter(
            torch.exp2(torch.arange(32.0) - 16), torch.tensor(0.0)
        ).expand(1, -1),
        "zeros": torch.zeros(1, 32),
        "negative zeros": torch.full((1, 32), -0.0),
        "subnormal": 2.0**-149 * torch.randint(-9000, 9000, (8, 32), generator=g),
        "largest": torch.finfo(torch.float32).max * plain[:2].sign(),
    }


@pytest.mark.parametrize("x", rows().values(), ids=rows())
@formats
def test_blocks_are_gfloats(format: Float, x: Tensor) -> None:
    want = [
        quantize_block(BLOCKS[format.name], row, compute_scale_amax) for row in x.double().numpy()
    ]
    got = mx.quantize(x, format)
    np.testing.assert_array_equal(got.numpy(), np.stack(want).astype(np.float32))


# Rounded up, the largest fp32 is infinite.
FINITE = {name: x for name, x in rows().items() if name != "largest"}


@pytest.mark.parametrize("x", FINITE.values(), ids=FINITE)
@formats
def test_rounded_up_the_scale_is_the_smallest_that_clips_nothing(format: Float, x: Tensor) -> None:
    for row, got in zip(x.double(), mx.quantize(x, format, rule="up").double(), strict=True):
        amax = float(row.abs().max())
        scale = 2.0**-127
        while amax / scale > format.largest:
            scale *= 2
        steps = meanings(format)[meanings(format).isfinite()].double().unique()
        near = (row[:, None] / scale - steps).abs()
        # Nearest, whichever neighbour a tie takes: ties are gfloat's business.
        chosen = (got[:, None] / scale - steps).abs()
        assert (chosen.min(dim=1).values == 0).all()
        torch.testing.assert_close(
            (got - row).abs() / scale, near.min(dim=1).values, rtol=1e-12, atol=0
        )


@formats
def test_floor_clips_by_at_most_its_top_and_up_never(format: Float) -> None:
    x = rows()["plain"]
    scales = torch.exp2(x.abs().amax(dim=1).log2().floor() - format.largest_exponent)
    clipped = x.abs().amax(dim=1) > format.largest * scales
    assert clipped.any()
    assert (mx.quantize(x, format).abs().amax(dim=1) == format.largest * scales)[clipped].all()
    up = mx.quantize(x, format, rule="up")
    relative = (up - x).abs().amax(dim=1) / x.abs().amax(dim=1)
    assert (relative <= 2.0 ** (-1 - format.mantissa_bits)).all()


@formats
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_no_number_makes_its_block_nan(format: Float, bad: float) -> None:
    x = rows()["plain"][:2].reshape(1, 64).clone()
    x[0, 5] = bad
    for got in (mx.quantize(x, format), mx.pack(x, format).unpack()):
        assert got[0, :32].isnan().all()
        assert torch.equal(got[0, 32:], mx.quantize(x[:, 32:], format)[0])
    assert mx.pack(x, format).scales[0, 0] == 255


# Bytes


@pytest.mark.parametrize("x", rows().values(), ids=rows())
@formats
@pytest.mark.parametrize("rule", RULES)
def test_packed_and_unpacked_is_quantized(format: Float, x: Tensor, rule: mx.Rule) -> None:
    assert torch.equal(mx.pack(x, format, rule=rule).unpack(), mx.quantize(x, format, rule=rule))


@pytest.mark.parametrize(
    ("format", "name"), [(E4M3, "mxfp8"), (E5M2, "mxfp8"), (E3M2, "mxfp6"), (E2M1, "mxfp4")]
)
def test_bytes_are_what_cost_counts(format: Float, name: str) -> None:
    x = torch.randn(6, 4, 256)
    packed = mx.pack(x, format)
    assert packed.nbytes == x.numel() * format_of(name).bytes
    assert packed.nbytes == 6 * 4 * 8 * BLOCKS[format.name].block_size_bytes


def test_two_elements_of_four_bits_stand_lower_half_first() -> None:
    x = torch.zeros(32)
    x[:4] = torch.tensor([0.5, 6.0, -1.0, -3.0])
    packed = mx.pack(x, E2M1)
    # Codes 1, 7, 10 and 13; the scale of a largest element of 6 is 2^0.
    assert packed.codes[0, :2].tolist() == [0x71, 0xDA]
    assert packed.scales.tolist() == [127]


def test_four_elements_of_six_bits_fill_three_bytes() -> None:
    codes = torch.tensor([1, 2, 3, 63], dtype=torch.uint8)
    word = 1 | 2 << 6 | 3 << 12 | 63 << 18
    assert mx.packed(codes, 6).tolist() == list(word.to_bytes(3, "little"))
    assert mx.unpacked(mx.packed(codes, 6), 6).tolist() == codes.tolist()


# Shapes


@formats
def test_any_axis_is_the_last_one_turned(format: Float) -> None:
    x = torch.randn(5, 64, 3)
    want = mx.quantize(x.movedim(1, -1), format).movedim(-1, 1)
    assert torch.equal(mx.quantize(x, format, axis=1), want)
    assert torch.equal(mx.quantize(x, format, axis=-2), want)


@formats
@pytest.mark.parametrize("n", [1, 31, 33, 70])
def test_a_last_block_may_be_short(format: Float, n: int) -> None:
    x = torch.randn(3, n)
    parts = [mx.quantize(part, format) for part in x.split(32, dim=1)]
    assert torch.equal(mx.quantize(x, format), torch.cat(parts, dim=1))
    packed = mx.pack(x, format)
    assert torch.equal(packed.unpack(), torch.cat(parts, dim=1))
    assert packed.nbytes == 3 * math.ceil(n / 32) * (4 * format.bits + 1)


@formats
def test_bf16_holds_what_comes_out(format: Float) -> None:
    x = torch.randn(7, 96).bfloat16()
    got = mx.quantize(x, format)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got.float(), mx.quantize(x.float(), format))


def test_it_runs_in_a_batch_of_models() -> None:
    x = torch.randn(3, 4, 70)
    assert torch.equal(
        vmap(lambda a: mx.quantize(a, E2M1, axis=0))(x), mx.quantize(x, E2M1, axis=1)
    )


# Properties

blocks = hnp.arrays(np.float32, 32, elements=st.floats(-(2.0**99), 2.0**99, width=32))


@given(named, blocks, st.sampled_from(RULES))
def test_quantizing_again_changes_nothing(format: Float, block: Any, rule: mx.Rule) -> None:
    once = mx.quantize(torch.from_numpy(block), format, rule=rule)
    assert torch.equal(mx.quantize(once, format, rule=rule), once)


@given(named, blocks, st.integers(-20, 20))
def test_a_power_of_two_passes_through(format: Float, block: Any, power: int) -> None:
    # Scales end at 2^-127.
    x = torch.from_numpy(np.where(np.abs(block) < 2.0**-60, 0, block))
    scaled = mx.quantize(x * 2.0**power, format)
    assert torch.equal(scaled, mx.quantize(x, format) * 2.0**power)


@given(named, blocks)
def test_order_in_a_block_is_kept(format: Float, block: Any) -> None:
    x = torch.from_numpy(np.sort(block))
    assert (mx.quantize(x, format).diff() >= 0).all()


@pytest.mark.parametrize("format", [E2M1, E4M3], ids=["e2m1", "e4m3"])
def test_stochastic_blocks_are_unbiased_where_nothing_is_clipped(format: Float) -> None:
    torch.manual_seed(0)
    x, n = torch.randn(64), 5000
    many = x.expand(n, -1)

    def bias(rule: mx.Rule) -> Tensor:
        return (mx.quantize(many, format, rule=rule, is_stochastic=True).mean(dim=0) - x).abs()

    scale = torch.exp2(torch.ceil((x.view(2, 32).abs().amax(1) / format.largest).log2()))
    step = scale * 2.0 ** (format.largest_exponent - format.mantissa_bits)
    bound = (5 * step / 2 / n**0.5).repeat_interleave(32)
    assert (bias("up") < bound).all()
    if format is E2M1:  # Control: the floor rule clips this block, and clipping has a direction.
        assert (bias("floor") > bound).any()
