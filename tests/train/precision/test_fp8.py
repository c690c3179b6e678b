"""FP8 with its scales against torch's casts, a loop over rows, and torchao's emulated training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from worthit.train.precision import apply_precision, fp8, mx, nvfp4
from worthit.train.precision.floats import E4M3, E5M2, FLOATS, Float

TORCHAO = json.loads((Path(__file__).parent / "torchao.json").read_text(encoding="utf-8"))
CASTS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
formats = pytest.mark.parametrize("format", [E4M3, E5M2], ids=CASTS)


def cast(x: Tensor, format: Float) -> Tensor:
    """Scale, cast with torch, take the scale out."""
    scale = format.largest / x.abs().max()
    return (x * scale).to(CASTS[format.name]).float() / scale


@formats
def test_one_scale_is_torchs_cast(format: Float) -> None:
    x = 1e-3 * torch.randn(40, 24)
    torch.testing.assert_close(fp8.quantize(x, format), cast(x, format), rtol=0, atol=0)


@formats
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_are_scaled_one_by_one(format: Float, axis: int) -> None:
    x = torch.randn(6, 10) * torch.exp2(torch.arange(6.0))[:, None] * torch.arange(1.0, 11)
    rows = [cast(row, format) for row in x.unbind(1 - axis)]
    got = fp8.quantize(x, format, scaling="row", axis=axis)
    torch.testing.assert_close(got, torch.stack(rows, dim=1 - axis), rtol=0, atol=0)


def test_an_outlier_flattens_a_tensor_and_not_its_rows() -> None:
    x = torch.full((2, 8), 0.01)
    x[0, 0] = 1e5
    assert not fp8.quantize(x)[1].any()
    torch.testing.assert_close(fp8.quantize(x, scaling="row")[1], x[1])


def test_zeros_stay_and_what_is_no_number_is_seen() -> None:
    assert not fp8.quantize(torch.zeros(3, 4)).any()
    x = torch.ones(2, 4)
    for bad in (torch.inf, -torch.inf, torch.nan):
        x[0, 0] = bad
        assert fp8.quantize(x).isnan().all()
        assert fp8.quantize(x, scaling="row")[0].isnan().all()
        assert not fp8.quantize(x, scaling="row")[1].isnan().any()


@formats
def test_error_is_within_half_a_step(format: Float) -> None:
    x = torch.randn(200, 50)
    got = fp8.quantize(x, format)
    smallest = 2.0**format.smallest_exponent / fp8.scale_for(x, format)
    bound = 2.0 ** (-1 - format.mantissa_bits) * x.abs().maximum(smallest)
    assert ((got - x).abs() <= bound * (1 + 1e-6)).all()


# Against torchao, recorded


@pytest.mark.parametrize("scaling", ["tensor", "row"])
def test_training_is_torchaos(scaling: str) -> None:
    want: dict[str, Any] = {name: torch.tensor(v) for name, v in TORCHAO["fp8"][scaling].items()}
    linear = nn.Linear(12, 8)
    with torch.no_grad():
        linear.weight.copy_(want["weight"])
        linear.bias.copy_(want["bias"])
    model = apply_precision(nn.Sequential(linear), "fp8", scaling=scaling)
    x = want["x"].requires_grad_()
    y = model(x)
    y.backward(want["dy"])
    torch.testing.assert_close(y, want["y"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x.grad, want["dx"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[0].weight.grad, want["dw"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["floor", "up"])
@pytest.mark.parametrize("name", FLOATS)
def test_mx_blocks_are_torchaos(name: str, rule: Any) -> None:
    x, want = (torch.tensor(TORCHAO["mx"][key]) for key in ("x", f"{name} {rule}"))
    torch.testing.assert_close(mx.quantize(x, FLOATS[name], rule=rule), want, rtol=0, atol=0)


def test_nvfp4_blocks_are_torchaos() -> None:
    x, want = (torch.tensor(TORCHAO["nvfp4"][key]) for key in ("x", "y"))
    torch.testing.assert_close(nvfp4.quantize(x), want, rtol=0, atol=0)
