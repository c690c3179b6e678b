"""Codes and scales, against ggml's blocks, another E4M3, BitNet's reference and hand sums."""

from __future__ import annotations

import gguf
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given

from worthit.errors import UnknownName
from worthit.nn.quant.grid import GRIDS, grid_of, pack, unpack
from worthit.nn.quant.linear import rounded, widened
from worthit.spec.formats import format_of


@pytest.mark.parametrize("bits", [2, 4])
@given(data=st.data())
def test_packing_is_undone_bit_for_bit(bits: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3)) * 32
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=2 * n, max_size=2 * n))
    codes = torch.tensor(values, dtype=torch.uint8).view(2, n)
    packed = pack(codes, bits)
    assert packed.numel() * 8 == codes.numel() * bits
    assert torch.equal(unpack(packed, bits), codes)


def of_ggml(weight: torch.Tensor, kind: str) -> tuple[np.ndarray, torch.Tensor]:
    """ggml's blocks of `weight`, `(out, blocks, bytes)`, and what they stand for."""
    number = gguf.GGMLQuantizationType[kind]
    raw = gguf.quantize(weight.numpy(), number)
    _, size = gguf.GGML_QUANT_SIZES[number]
    return raw.reshape(len(raw), -1, size), torch.from_numpy(gguf.dequantize(raw, number))


def halves(raw: np.ndarray) -> torch.Tensor:
    """The fp16 number that two bytes are."""
    return torch.from_numpy(np.ascontiguousarray(raw).view("<f2")[..., 0].copy())


def test_four_bits_are_ggmls_blocks() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 96)
    for kind, name in (("Q4_0", "int4-g32"), ("Q4_1", "q4_1")):
        blocks, known = of_ggml(weight, kind)
        grid = grid_of(name)
        scales = halves(blocks[..., :2])
        # Scales chosen here, in fp16, are those that ggml chooses.
        ours, zeros = grid.fit(weight, torch.float32)
        assert torch.equal(ours.half(), scales)
        if zeros is not None:
            least = halves(blocks[..., 2:4])
            torch.testing.assert_close(zeros - 8 * ours, least.float(), rtol=1e-3, atol=0)
            zeros = least.float() + 8 * scales.float()
        codes = torch.from_numpy(blocks[..., -16:].copy()).flatten(-2)
        torch.testing.assert_close(widened(grid, codes, scales, zeros), known, rtol=1e-6, atol=1e-6)


def test_eight_bits_in_groups_are_ggmls_blocks() -> None:
    torch.manual_seed(1)
    weight = torch.randn(3, 64)
    blocks, known = of_ggml(weight, "Q8_0")
    scales = halves(blocks[..., :2])
    codes = torch.from_numpy(blocks[..., 2:].copy()).view(torch.int8).flatten(-2)
    assert torch.equal(widened(grid_of("int8-g32"), codes, scales, None), known)
    ours, _, _ = rounded(grid_of("int8-g32"), weight, torch.float32)
    # ggml divides by a scale before it is rounded to fp16, and rounds halves away from zero.
    assert (ours.int() - codes.int()).abs().max() <= 1
    assert (ours == codes).float().mean() > 0.95


def test_fp8_is_another_implementations_e4m3() -> None:
    torch.manual_seed(2)
    weight = torch.randn(4, 48) * torch.tensor([1e-3, 1.0, 50.0, 0.0])[:, None]
    grid = grid_of("fp8")
    scales, _ = grid.fit(weight, torch.float32)
    codes = grid.encode(weight, scales, None)
    theirs = (weight / scales).numpy().astype(ml_dtypes.float8_e4m3fn)
    assert torch.equal(codes.float(), torch.from_numpy(theirs.astype(np.float32)))
    assert codes.float().abs().max() == 448
    assert torch.equal(grid.unpack(grid.pack(codes)).float(), codes.float())


def test_int8_by_hand() -> None:
    weight = torch.tensor([[0.5, -1.27, 0.014], [0.0, 0.0, 0.0]])
    codes, scales, _ = rounded(grid_of("int8"), weight, torch.float32)
    assert codes.tolist() == [[50, -127, 1], [0, 0, 0]]
    assert scales[0].item() == pytest.approx(0.01)


@pytest.mark.parametrize("name", [n for n, grid in GRIDS.items() if grid.kind == "int"])
@given(data=st.data())
def test_no_number_is_further_than_half_a_step(name: str, data: st.DataObject) -> None:
    grid = grid_of(name)
    seed, size = data.draw(st.integers(0, 10_000)), data.draw(st.sampled_from([1e-3, 1.0, 300.0]))
    generator = torch.Generator().manual_seed(seed)
    weight = size * torch.randn(3, 256, generator=generator)
    codes, scales, zeros = rounded(grid, weight, torch.float32)
    steps = scales.abs().repeat_interleave(256 // scales.shape[1], dim=1)
    error = (widened(grid, codes, scales, zeros) - weight).abs()
    bound = 0.5001 * steps
    if name == "int4-g32":
        # 15 steps from -8 to 7: what is as large as the greatest with the other sign is cut off.
        bound = torch.where(weight.abs() > 7.4 * steps, steps, bound)
    assert (error <= bound + 1e-6 * weight.abs()).all()


@pytest.mark.parametrize("name", GRIDS)
def test_stored_bits_are_those_that_cost_counts(name: str) -> None:
    grid, (out, columns) = grid_of(name), (48, 512)
    codes, scales, zeros = rounded(grid, torch.randn(out, columns))
    assert codes.shape == grid.codes_shape(out, columns)
    assert scales.shape == grid.scales_shape(out, columns)
    assert codes.dtype == grid.codes_dtype
    held = [t for t in (codes, scales, zeros) if t is not None]
    bits = 8 * sum(t.numel() * t.element_size() for t in held)
    # One scale a row, or a matrix, is left out of the format's own bits.
    shared = 16 * scales.numel() if grid.group is None else 0
    assert bits - shared == format_of(name).bits * out * columns


def test_unknown_formats_are_named() -> None:
    with pytest.raises(UnknownName, match="did you mean int4-g32"):
        grid_of("int4-g33")
