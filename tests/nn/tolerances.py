"""How near two computations of one number must be: one table, which nothing loosens."""

from __future__ import annotations

import torch
from torch import Tensor

# Relative and absolute error; the same sums in another order differ by this much.
TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-9, 1e-11),
    torch.float32: (1e-4, 1e-5),
    torch.bfloat16: (3e-2, 3e-2),
    torch.float16: (5e-3, 5e-3),
}


def assert_near(got: Tensor | None, want: Tensor | None) -> None:
    """Fail unless `got` is `want` up to rounding; both must exist."""
    assert got is not None
    assert want is not None
    rtol, atol = TOLERANCES[want.dtype]
    # Errors are measured against the largest element: sums cancel, and small ones inherit that.
    largest = want.detach().abs().max().item() if want.numel() else 0.0
    torch.testing.assert_close(got, want, rtol=rtol, atol=max(atol, atol * largest))
