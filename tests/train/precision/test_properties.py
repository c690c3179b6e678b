"""What every format keeps, whatever it is given: order, sign, what it made itself, a bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from worthit.train.precision import bitnet, fp8, mx, nvfp4
from worthit.train.precision.floats import E2M1, E4M3, E5M2

# Scales that are no powers of two cost a rounding of fp32 each time they are put in and taken out.
ROUNDING = 1e-6

FORMATS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    # With the largest error, as a share of the largest element of what shares a scale.
    "fp8 e4m3": (fp8.quantize, 2.0**-4),
    "fp8 e5m2": (lambda x: fp8.quantize(x, E5M2), 2.0**-3),
    "fp8 rows": (lambda x: fp8.quantize(x, scaling="row"), 2.0**-4),
    "mxfp8": (lambda x: mx.quantize(x, E4M3, rule="up"), 2.0**-4),
    "mxfp4": (lambda x: mx.quantize(x, E2M1, rule="up"), 2.0**-2),
    # One scale is rounded to E4M3 too: by a sixteenth.
    "nvfp4": (nvfp4.quantize, (1 + 2.0**-4) / 6),
    "int8 a token": (bitnet.quantize_activations, 0.5 / 127),
}
few = settings(max_examples=30)
every = pytest.mark.parametrize(("quantize", "bound"), FORMATS.values(), ids=FORMATS)
# One row of one block of any format, of sizes at which no scale is at its own end.
rows = hnp.arrays(
    np.float32,
    (1, 16),
    elements=st.one_of(st.just(0.0), st.floats(2.0**-10, 2.0**10, width=32)).flatmap(
        lambda v: st.sampled_from((v, -v))
    ),
)


@every
@few
@given(row=rows)
def test_error_is_bounded_by_the_largest(quantize: Any, bound: float, row: Any) -> None:
    x = torch.from_numpy(row)
    error = (quantize(x) - x).abs().max()
    assert error <= bound * x.abs().max() * (1 + ROUNDING)


@every
@few
@given(row=rows)
def test_order_and_sign_are_kept(quantize: Any, bound: float, row: Any) -> None:
    x = torch.from_numpy(np.sort(row, axis=1))
    q = quantize(x)
    assert (q.diff() >= 0).all()
    assert (q * x >= 0).all()
    assert torch.equal(quantize(-x), -q)


@every
@few
@given(row=rows)
def test_what_it_made_it_keeps(quantize: Any, bound: float, row: Any) -> None:
    once = quantize(torch.from_numpy(row))
    torch.testing.assert_close(quantize(once), once, rtol=4 * ROUNDING, atol=0)


@few
@given(row=rows)
def test_ternary_weights_stay_ternary(row: Any) -> None:
    w = torch.from_numpy(row)
    levels = bitnet.ternary(w)
    assert set(levels.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert torch.equal(bitnet.ternary(bitnet.quantize_weights(w)), levels)
    assert (levels * w >= 0).all()
