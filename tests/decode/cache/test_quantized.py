"""Few bits: no element further than half a step, no number that depends on chunks, exact bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worthit.decode.cache import grid
from worthit.decode.cache.quantized import FORMATS, CacheFormat, Codes, QuantizedKV, cache_format
from worthit.errors import InputError, UnknownName

SHAPES = [(1, 1), (8, 1), (64, 3), (130, 2)]


def keys_like(n: int, *, heads: int = 2, dim: int = 64, seed: int = 0) -> Tensor:
    """Keys with a few channels that are far larger than the others, as real ones have."""
    torch.manual_seed(seed)
    x = torch.randn(1, heads, n, dim)
    x[..., 5] += 30.0
    x[..., 17] *= 12.0
    return x


@pytest.mark.parametrize("has_zero", [True, False])
@pytest.mark.parametrize("bits", [8, 4, 2])
@given(
    offset=st.floats(-50, 50),
    scale=st.floats(1e-4, 100),
    seed=st.integers(0, 2**20),
    is_constant=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_no_element_is_further_than_half_a_step(
    bits: int, has_zero: bool, offset: float, scale: float, seed: int, is_constant: bool
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(3, 16) * (0.0 if is_constant else scale) + offset
    step, zero = grid.fit(x, bits, -1, has_zero=has_zero)
    assert step.dtype == torch.float16
    codes = grid.encode(x, step, zero, bits)
    assert int(codes.max()) < 2**bits
    back = grid.decode(codes, step, zero, bits, torch.float32)
    # Beside the half step, what fp32 itself rounds: a share, and below its normal numbers no share.
    bound = step.float() / 2 * (1 + 1e-5) + x.abs().max() * 1e-6 + torch.finfo(torch.float32).tiny
    assert ((back - x).abs() <= bound).all()
    # And the step is no larger than the group needs, but for the rounding to 16 bits.
    span = (x.max(-1).values - x.min(-1).values) if has_zero else 2 * x.abs().max(-1).values
    n_steps = 2**bits - 1 if has_zero else 2**bits - 2
    slack = 4e-3 * x.abs().amax(-1) + n_steps * 3e-7  # 16 bits end at 6e-8
    assert (step[:, 0].float() * n_steps <= span * 1.01 + slack).all()


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_packing_loses_nothing(bits: int) -> None:
    codes = torch.randint(2**bits, (2, 3, 5, 24), dtype=torch.uint8)
    packed = grid.pack(codes, bits)
    assert packed.shape[-1] * 8 == 24 * bits
    assert torch.equal(grid.unpack(packed, bits), codes)


def slowly(x: Tensor, form: CacheFormat, *, by_channel: bool) -> Tensor:
    """Group by group, in Python: what is remembered of `x` `(n, dim)`."""
    out = torch.empty_like(x)
    n, dim = x.shape
    rows = range(0, n, form.group) if by_channel else range(n)
    for r in rows:
        for c in range(dim) if by_channel else range(0, dim, form.group):
            where = (
                (slice(r, r + form.group), slice(c, c + 1))
                if by_channel
                else (slice(r, r + 1), slice(c, c + form.group))
            )
            group = x[where].flatten()
            step, zero = grid.fit(group[None], form.bits, -1, has_zero=form.has_zero)
            step, zero = float(step), 0.0 if zero is None else float(zero)
            levels = [
                i * step + zero
                for i in (
                    range(2**form.bits)
                    if form.has_zero
                    else range(-(2 ** (form.bits - 1)) + 1, 2 ** (form.bits - 1))
                )
            ]
            nearest = [min(levels, key=lambda v, y=y: abs(v - y)) for y in group.tolist()]
            out[where] = torch.tensor(nearest).view(x[where].shape)
    return out


@pytest.mark.parametrize("name", FORMATS)
def test_codes_are_the_nearest_levels_of_each_group(name: str) -> None:
    form = FORMATS[name]
    x = keys_like(64, heads=1, dim=64)
    for by_channel in {form.by_channel, False}:
        codes = Codes(form, by_channel=by_channel)
        codes.append(x)
        want = slowly(x[0, 0], form, by_channel=by_channel)
        got = codes.value(torch.float32)[0, 0]
        # Two levels may be equally near.
        close = (got - want).abs() < 1e-4
        ties = ((got - x[0, 0]).abs() - (want - x[0, 0]).abs()).abs() < 1e-4
        assert (close | ties).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("chunks", [[200], [1] * 200, [64, 64, 64, 8], [63, 1, 70, 66], [5] * 40])
def test_chunks_give_the_same_bits_as_one_shot(name: str, chunks: list[int]) -> None:
    k, v = keys_like(200), keys_like(200, seed=1)
    at_once, by_chunks = QuantizedKV(FORMATS[name]), QuantizedKV(FORMATS[name])
    at_once.append(k, v)
    start = 0
    for n in chunks:
        by_chunks.append(k[:, :, start : start + n], v[:, :, start : start + n])
        start += n
    for a, b in zip(at_once.quantized, by_chunks.quantized, strict=True):
        assert torch.equal(a.packed.value, b.packed.value)
        assert torch.equal(a.scales.value, b.scales.value)
    if at_once.keys.length:
        assert torch.equal(at_once.keys.value, by_chunks.keys.value)
    assert at_once.nbytes == by_chunks.nbytes


@pytest.mark.parametrize("name", FORMATS)
def test_recent_tokens_and_those_of_the_pass_are_whole(name: str) -> None:
    form, cache = FORMATS[name], QuantizedKV(FORMATS[name])
    k, v = keys_like(300), keys_like(300, seed=1)
    first_k, first_v = cache.append(k[:, :, :140], v[:, :, :140])
    seen_k, _ = cache.append(k[:, :, 140:141], v[:, :, 140:141])
    n = form.n_quantized(140)
    assert n <= 140 - form.recent < n + form.tokens_at_once
    if form.recent:
        assert torch.equal(first_k, k[:, :, :140])
        assert torch.equal(first_v, v[:, :, :140])
        assert torch.equal(seen_k[:, :, n:], k[:, :, n:141])
    else:
        assert torch.equal(first_k, seen_k[:, :, :140])  # read as stored from the first moment
    assert not torch.equal(seen_k[:, :, :n], k[:, :, :n])  # control: the rest is stored on a grid
    # What is quantized stays as it is, however often it is read.
    first = cache.quantized[0].packed.value.clone()
    for i in range(141, 300):
        cache.append(k[:, :, i : i + 1], v[:, :, i : i + 1])
    assert torch.equal(cache.quantized[0].packed.value[:, :, : first.shape[2]], first)


@pytest.mark.parametrize("n_tokens", [0, 1, 63, 64, 127, 128, 129, 500])
@pytest.mark.parametrize("name", FORMATS)
def test_bytes_are_counted_from_what_is_stored(name: str, n_tokens: int) -> None:
    form, cache = FORMATS[name], QuantizedKV(FORMATS[name])
    for dtype in (torch.bfloat16, torch.float32):
        cache = QuantizedKV(form)
        if n_tokens:
            x = keys_like(n_tokens).to(dtype)
            cache.append(x, x)
        n = form.n_quantized(n_tokens)
        elements = 2 * 2 * 64  # keys and values of two heads
        want = n * elements * form.bits_per_element / 8
        assert cache.nbytes == want + (n_tokens - n) * elements * dtype.itemsize


def test_keys_by_channel_bear_their_outliers() -> None:
    k = keys_like(512)
    by_token, by_channel = QuantizedKV(FORMATS["int4"]), QuantizedKV(FORMATS["kivi-int4"])
    errors = []
    for cache in (by_token, by_channel):
        codes = cache.quantized[0]
        codes.append(k)
        errors.append((codes.value(torch.float32) - k).square().mean())
    assert errors[1] < errors[0] / 5


def test_tokens_are_taken_back_or_it_is_said_why_not() -> None:
    k = keys_like(200)
    for name in ("int8", "kivi-int4"):
        straight, cache = QuantizedKV(FORMATS[name]), QuantizedKV(FORMATS[name])
        straight.append(k[:, :, :150], k[:, :, :150])
        cache.append(k[:, :, :150], k[:, :, :150])
        cache.append(k[:, :, 160:165], k[:, :, 160:165])
        cache.take_back(5)
        a, _ = straight.append(k[:, :, 150:151], k[:, :, 150:151])
        b, _ = cache.append(k[:, :, 150:151], k[:, :, 150:151])
        assert torch.equal(a, b)
    with pytest.raises(InputError, match="share scales with earlier ones"):
        cache.take_back(120)


def test_a_fork_and_chosen_rows_go_on_by_themselves() -> None:
    x = keys_like(100).expand(3, 2, 100, 64).clone()
    x[1] += 1
    for name in FORMATS:
        cache = QuantizedKV(FORMATS[name])
        cache.append(x, x)
        copy = cache.fork()
        copy.append(x[:, :, :1], x[:, :, :1])
        assert copy.length == cache.length + 1
        copy.select_rows(torch.tensor([1, 1]))
        k, _ = copy.append(x[:2, :, :1], x[:2, :, :1])
        assert torch.equal(k[0, :, :101], k[1, :, :101])
        assert (k[0, :, :100] - x[1]).abs().mean() < 1


def test_what_does_not_divide_or_exist_is_refused() -> None:
    with pytest.raises(InputError, match="groups of 32 channels must divide head_dim, got 24"):
        FORMATS["int8"].check(24)
    with pytest.raises(UnknownName, match="kivi-int4"):
        cache_format("kivi4")
