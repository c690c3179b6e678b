"""NVFP4 against a loop over its definition with gfloat's rounding; bytes as cost counts them."""

from __future__ import annotations

import gfloat
import gfloat.formats
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import vmap

from worthit.spec.formats import format_of
from worthit.train.precision import mx, nvfp4
from worthit.train.precision.floats import E2M1

E2M1_INFO = gfloat.formats.format_info_ocp_e2m1
E4M3_INFO = gfloat.formats.format_info_ocp_e4m3


def slowly(x: Tensor) -> Tensor:
    """Two scales and one rounding at a time, in fp32 as the definition has them."""
    flat = x.numpy().astype(np.float32)
    tensor = np.float32(np.abs(flat).max() / np.float32(6 * 448))
    out = np.zeros_like(flat)
    for i, row in enumerate(flat):
        for start in range(0, row.size, 16):
            block = row[start : start + 16]
            wanted = np.float32(np.abs(block).max() / np.float32(6)) / tensor
            local = np.float32(gfloat.round_float(E4M3_INFO, float(wanted), sat=True))
            scale = np.float32(tensor * local)
            for j, v in enumerate(block):
                if scale:
                    code = gfloat.round_float(E2M1_INFO, float(np.float32(v / scale)), sat=True)
                    out[i, start + j] = np.float32(code) * scale
    return torch.from_numpy(out)


def cases() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 80, generator=g)
    return {
        "plain": x,
        "rows of many sizes": x * torch.exp2(torch.linspace(-20, 20, 12))[:, None],
        "short last block": x[:, :37],
        "ties": torch.randint(-12, 13, (4, 32), generator=g) / 2,
        "a block far below the rest": torch.cat([x[:1, :16], 1e-7 * x[:1, 16:32]], dim=1),
    }


@pytest.mark.parametrize("x", cases().values(), ids=cases())
def test_blocks_are_the_definition(x: Tensor) -> None:
    torch.testing.assert_close(nvfp4.quantize(x), slowly(x), rtol=0, atol=0)
    torch.testing.assert_close(nvfp4.pack(x).unpack(), slowly(x), rtol=0, atol=0)


def test_zeros_stay_and_what_is_no_number_is_seen() -> None:
    assert not nvfp4.quantize(torch.zeros(2, 32)).any()
    assert not nvfp4.pack(torch.zeros(2, 32)).unpack().any()
    for bad in (torch.inf, torch.nan):
        x = torch.ones(2, 32)
        x[1, 3] = bad
        assert nvfp4.quantize(x).isnan().all()
        assert nvfp4.pack(x).unpack().isnan().all()


def test_bytes_are_what_cost_counts() -> None:
    x = torch.randn(6, 256)
    assert nvfp4.pack(x).nbytes == x.numel() * format_of("nvfp4").bytes + 4


def test_any_axis_is_the_last_one_turned() -> None:
    x = torch.randn(40, 24)
    assert torch.equal(nvfp4.quantize(x, axis=0), nvfp4.quantize(x.T).T)


def test_every_model_of_a_batch_has_its_own_scale() -> None:
    x = torch.randn(3, 5, 48) * torch.tensor([1.0, 1e-3, 1e3])[:, None, None]
    batched = vmap(nvfp4.quantize)(x)
    assert torch.equal(batched, torch.stack([nvfp4.quantize(each) for each in x]))


def test_it_is_finer_than_mxfp4_on_bell_shaped_values() -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    errors = [(q - x).square().mean() for q in (nvfp4.quantize(x), mx.quantize(x, E2M1))]
    assert errors[0] < 0.75 * errors[1]


def test_stochastic_rounding_is_unbiased() -> None:
    torch.manual_seed(0)
    x, n = torch.randn(64), 5000
    mean = nvfp4.quantize(x.expand(n, -1), is_stochastic=True).mean(dim=0)
    # Clipped are only those whose block's scale was rounded down, by at most 1/16 of it.
    step = (x.view(4, 16).abs().amax(dim=1) / 6 * 2).repeat_interleave(16)
    is_inside = x.abs() < 0.9 * x.view(4, 16).abs().amax(dim=1).repeat_interleave(16)
    assert ((mean - x).abs() < 5 * step / 2 / n**0.5)[is_inside].all()
