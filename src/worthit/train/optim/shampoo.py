"""Shampoo: each matrix gradient is multiplied by roots of its covariances, from both sides.

Gupta et al. 2018, "Shampoo: Preconditioned Stochastic Tensor Optimization", arXiv:1802.09568,
algorithm 1:

    L = L + G G^T,   R = R + G^T G          (from eps I)
    W = W - lr L^(-1/4) G R^(-1/4)

and what made it practical, Shi et al. 2023, "A Distributed Data-Parallel PyTorch Implementation of
the Distributed Shampoo Optimizer for Training Neural Networks At-Scale", arXiv:2309.06497,
section 3: matrices in blocks, covariances as running means, roots renewed now and then, a running
mean of gradients in place of G in the step, and the step's size grafted from Adam's, block by
block:

    P = L^(-1/4) M R^(-1/4),   A = M / (sqrt V + eps)
    W = (1 - lr wd) W - lr ||A|| / ||P|| P

| paper | here |
|---|---|
| G | `g`, one block of a gradient |
| L, R | `left/i/j`, `right/i/j` of block i, j; their roots beside them |
| M, V | `mean`, `square`, corrected for their start |
| beta1, beta2 | `betas`; `None` as the second sums instead of averaging, as algorithm 1 does |

Roots are renewed at every step until the first interval is over: what a few gradients have not
shown is taken for flat, and the next one would be amplified there.

`Shampoo(..., betas=(0.0, None), is_grafted=False, interval=1)` is algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from worthit.train.optim._base import MatrixOptimizer, counted, wide
from worthit.train.optim.roles import join, split

ROOT = -1 / 4
SIDES = ("left", "right")


class Shampoo(MatrixOptimizer):
    """Steps parameters of shape `(..., rows, columns)`, every leading index a matrix of its own.

    Args:
        params: matrices, or groups of them; see `optimizer_for` for the rest of a model.
        lr: learning rate; grafted, one tuned for AdamW serves.
        betas: decay of the mean, and of the square and both covariances (None: their sum).
        eps: added to every eigenvalue of a covariance before the root.
        graft_eps: added to the root of the square.
        weight_decay: decoupled, times `lr`.
        interval: steps from one renewal of the roots to the next.
        block: longest side of a block.
        is_grafted: give each block's step the size of Adam's.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-3,
        *,
        betas: tuple[float, float | None] = (0.9, 0.95),
        eps: float = 1e-12,
        graft_eps: float = 1e-8,
        weight_decay: float = 0.0,
        interval: int = 10,
        block: int = 1024,
        is_grafted: bool = True,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "graft_eps": graft_eps,
                "weight_decay": weight_decay,
                "interval": interval,
                "block": block,
                "is_grafted": is_grafted,
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
        n = counted(state)
        mean, adam = self._moments(g, state, group, n)
        step = torch.empty_like(g)
        is_due = n <= group["interval"] or n % group["interval"] == 0
        for name, at in blocks(g.shape, group["block"]):
            step[at] = self._preconditioned(g[at], mean[at], name, state, group, n, is_due=is_due)
            if adam is not None:
                step[at] *= _norm(adam[at]) / _norm(step[at]).clamp(min=group["eps"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(join(step, group["parts"]), alpha=-group["lr"])

    def _moments(
        self, g: Tensor, state: dict[str, Tensor], group: dict[str, Any], n: int
    ) -> tuple[Tensor, Tensor | None]:
        """What is preconditioned, and Adam's step where its size is wanted."""
        beta1, beta2 = group["betas"]
        mean = g
        if beta1:
            mean = state.setdefault("mean", torch.zeros_like(g)).lerp_(g, 1 - beta1)
            mean = mean / (1 - beta1**n)
        if not group["is_grafted"]:
            return mean, None
        square = state.setdefault("square", torch.zeros_like(g))
        if beta2 is None:
            square.add_(g.square())
        else:
            square = square.lerp_(g.square(), 1 - beta2) / (1 - beta2**n)
        return mean, mean / (square.sqrt() + group["graft_eps"])

    def _preconditioned(
        self,
        g: Tensor,
        mean: Tensor,
        name: str,
        state: dict[str, Tensor],
        group: dict[str, Any],
        n: int,
        *,
        is_due: bool,
    ) -> Tensor:
        """L^(-1/4) `mean` R^(-1/4) of one block, whose covariances see `g`."""
        beta2 = group["betas"][1]
        for side, seen in zip(SIDES, (g @ g.mT, g.mT @ g), strict=True):
            key = f"{side}/{name}"
            covariance = state.setdefault(key, torch.zeros_like(seen))
            if beta2 is None:
                covariance.add_(seen)
            else:
                covariance.lerp_(seen, 1 - beta2)
            if is_due:
                start = 1.0 if beta2 is None else 1 - beta2**n
                state[f"{key}/root"] = root(covariance / start, group["eps"])
        return state[f"left/{name}/root"] @ mean @ state[f"right/{name}/root"]


def blocks(shape: torch.Size, side: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """A name and the index of every block of `(..., rows, columns)`, at most `side` long."""
    rows, columns = shape[-2:]
    for i, top in enumerate(range(0, rows, side)):
        for j, start in enumerate(range(0, columns, side)):
            yield f"{i}/{j}", (..., slice(top, top + side), slice(start, start + side))


def root(covariance: Tensor, eps: float) -> Tensor:
    """(`covariance` + eps I)^(-1/4) of symmetric `(..., n, n)`, in fp32 at least."""
    values, vectors = torch.linalg.eigh(wide(covariance))
    # Below this, relative to the largest, rounding decides what an eigenvalue is, and the root
    # would amplify it.
    noise = values.shape[-1] * torch.finfo(values.dtype).eps
    floor = noise * values[..., -1:].clamp(min=0)
    powers = (values.maximum(floor) + eps) ** ROOT
    return ((vectors * powers[..., None, :]) @ vectors.mT).to(covariance.dtype)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(x, keepdim=True)
