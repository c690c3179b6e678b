"""Muon, Shampoo and SOAP beside other people's implementations, on the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn

from worthit.train.optim import SOAP, Muon, Shampoo

SHAPES = ((16, 8), (8, 16), (12, 12), (5, 7))
STEPS = 25

Made = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def trained(make: Made, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Where `STEPS` steps along random gradients lead from random matrices."""
    g = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(s, generator=g, dtype=dtype)) for s in SHAPES]
    optimizer = make(params)
    for _ in range(STEPS):
        for p in params:
            # A few strong directions, as gradients of a trained layer have.
            strong = torch.randn(p.shape[0], 2, generator=g, dtype=dtype)
            noise = torch.randn(p.shape, generator=g, dtype=dtype)
            p.grad = strong @ torch.randn(2, p.shape[1], generator=g, dtype=dtype) + 0.3 * noise
        optimizer.step()
    return [p.detach() for p in params]


def same(got: list[Tensor], want: list[Tensor], **tolerance: float) -> None:
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("is_nesterov", [True, False])
@pytest.mark.parametrize(("scale", "theirs"), [("shape", "original"), ("rms", "match_rms_adamw")])
def test_muon_is_torchs(scale: Any, theirs: str, is_nesterov: bool) -> None:
    shared = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    got = trained(lambda p: Muon(p, scale=scale, is_nesterov=is_nesterov, **shared))
    want = trained(
        lambda p: torch.optim.Muon(p, adjust_lr_fn=theirs, nesterov=is_nesterov, **shared)
    )
    same(got, want, rtol=0, atol=0)


@pytest.mark.parametrize(("scale", "is_adjusted"), [("shape", False), ("rms", True)])
def test_muon_is_pytorch_optimizers(scale: Any, is_adjusted: bool) -> None:
    shared = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    got = trained(lambda p: Muon(p, scale=scale, **shared))
    want = trained(
        lambda p: pytorch_optimizer.Muon(
            [{"params": p, "use_muon": True}], use_adjusted_lr=is_adjusted, **shared
        )
    )
    same(got, want, rtol=0, atol=0)


def test_shampoo_is_pytorch_optimizers() -> None:
    got = trained(
        lambda p: Shampoo(p, lr=0.05, betas=(0.0, None), eps=1e-4, interval=1, is_grafted=False),
        torch.float64,
    )
    want = trained(lambda p: pytorch_optimizer.Shampoo(p, lr=0.05, matrix_eps=1e-4), torch.float64)
    same(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("interval", "max_side"), [(1, 100), (4, 100), (3, 10)])
def test_soap_is_pytorch_optimizers(interval: int, max_side: int) -> None:
    shared = {"lr": 0.02, "betas": (0.9, 0.95), "weight_decay": 0.1}
    got = trained(lambda p: SOAP(p, interval=interval, max_side=max_side, **shared))
    want = trained(
        lambda p: pytorch_optimizer.SOAP(
            p, precondition_frequency=interval, max_precondition_dim=max_side, **shared
        )
    )
    same(got, want, rtol=1e-5, atol=1e-6)
