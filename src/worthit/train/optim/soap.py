"""SOAP: Adam run in the slowly turning eigenbasis of Shampoo's covariances.

Vyas et al. 2024, "SOAP: Improving and Stabilizing Shampoo using Adam", arXiv:2409.11321,
algorithms 3 and 4. For a gradient G of m x n:

    L = beta2 L + (1 - beta2) G G^T,   R = beta2 R + (1 - beta2) G^T G
    G' = QL^T G QR,   M = beta1 M + (1 - beta1) G,   V = beta2 V + (1 - beta2) G' * G'
    W = W - lr QL [(QL^T M QR) / (sqrt V + eps)] QR^T             (M, V corrected for their start)
    every f steps: QL, QR = one power iteration and a QR decomposition, from the bases as they are

| paper | here |
|---|---|
| L, R | `left`, `right` |
| QL, QR | `left_basis`, `right_basis` |
| M, V | `mean`, `square` |
| f | `interval` |

As in the authors' code the first gradient sets the bases and moves nothing, and a refreshed basis
stays sorted by its eigenvalues, with V in the same order. Sides above `max_side` keep the identity.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from worthit.train.optim._base import MatrixOptimizer, counted, wide
from worthit.train.optim.roles import join, split

SIDES = ("left", "right")


class SOAP(MatrixOptimizer):
    """Steps parameters of shape `(..., rows, columns)`, every leading index a matrix of its own.

    Args:
        params: matrices, or groups of them; see `optimizer_for` for the rest of a model.
        lr: learning rate, as AdamW's.
        betas: decay of the mean, and of the square and both covariances.
        eps: added to the root of the square.
        weight_decay: decoupled, times `lr`.
        interval: steps from one refresh of the bases to the next.
        max_side: longer sides of a matrix are not turned.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-3,
        *,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        interval: int = 10,
        max_side: int = 10_000,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "interval": interval,
                "max_side": max_side,
            },
        )

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients that stand in `.grad`."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, split(p.grad, group["parts"]), self.state[p], group)

    def _step(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        n = counted(state) - 1
        if n == 0:
            self._start(g, state, group)
            return
        mean, square = state["mean"], state["square"]
        mean.lerp_(g, 1 - beta1)
        square.lerp_(turned(g, state).square(), 1 - beta2)
        step = turned_back(turned(mean, state) / (square.sqrt() + group["eps"]), state)
        start = (1 - beta2**n) ** 0.5 / (1 - beta1**n)
        p.add_(join(step, group["parts"]), alpha=-group["lr"] * start)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        _observe(g, state, beta2)
        if n % group["interval"] == 0:
            _refresh(state)

    def _start(self, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        state["mean"], state["square"] = torch.zeros_like(g), torch.zeros_like(g)
        for side, n in zip(SIDES, g.shape[-2:], strict=True):
            if n <= group["max_side"]:
                state[side] = g.new_zeros(*g.shape[:-2], n, n)
        _observe(g, state, group["betas"][1])
        for side in SIDES:
            if side in state:
                # Ascending; the largest first is what refreshes keep.
                basis = torch.linalg.eigh(wide(state[side])).eigenvectors.flip(-1)
                state[f"{side}_basis"] = basis.to(g.dtype)


def turned(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """QL^T x QR, `(..., rows, columns)` to the same shape."""
    if "left_basis" in state:
        x = state["left_basis"].mT @ x
    return x @ state["right_basis"] if "right_basis" in state else x


def turned_back(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """QL x QR^T, `(..., rows, columns)` to the same shape."""
    if "left_basis" in state:
        x = state["left_basis"] @ x
    return x @ state["right_basis"].mT if "right_basis" in state else x


def _observe(g: Tensor, state: dict[str, Tensor], beta2: float) -> None:
    """Let the covariances see a gradient."""
    if "left" in state:
        state["left"].lerp_(g @ g.mT, 1 - beta2)
    if "right" in state:
        state["right"].lerp_(g.mT @ g, 1 - beta2)


def _refresh(state: dict[str, Tensor]) -> None:
    """Turn the bases after their covariances: algorithm 4."""
    for side, axis in zip(SIDES, (-2, -1), strict=True):
        if side not in state:
            continue
        basis = state[f"{side}_basis"]
        product = state[side] @ basis
        order = (basis * product).sum(dim=-2).argsort(dim=-1, descending=True)
        product = product.gather(-1, order[..., None, :].expand_as(product))
        state[f"{side}_basis"] = torch.linalg.qr(wide(product)).Q.to(basis.dtype)
        square = state["square"]
        along = order[..., None] if axis == -2 else order[..., None, :]
        state["square"] = square.gather(axis, along.expand_as(square))
