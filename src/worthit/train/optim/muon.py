"""Muon: momentum whose matrices are made nearly orthogonal before each step.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks",
kellerjordan.github.io/posts/muon; the scale by shape that carries AdamW's learning rates over is
Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv:2502.16982, equation 4:

    B = mu B + (1 - mu) G
    O = NewtonSchulz(mu B + (1 - mu) G)                     (Nesterov)
    W = (1 - lr wd) W - lr scale O
    X <- a X + (b A + c A A) X,  A = X X^T,  five times, from X = . / ||.||_F

| paper | here |
|---|---|
| G, B, O | `grad`, `momentum`, `orthogonalise(...)` |
| mu | `momentum` |
| a, b, c | `COEFFICIENTS` |
| scale, of a matrix A x B | `"rms"`: 0.2 sqrt(max(A, B)); `"shape"`: sqrt(max(1, A / B)) |

The coefficients are steepest at zero instead of convergent: singular values end between about 0.7
and 1.2, which is neither the polar factor nor meant to be. The mean in B (and not the sum that the
post writes) changes nothing: the iteration forgets the scale of what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from worthit.train.optim._base import MatrixOptimizer
from worthit.train.optim.roles import join, split

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# The root mean square of AdamW's updates is 0.2 to 0.4 in practice (Liu et al. 2025, section 2.2).
ADAMW_RMS = 0.2
# Below this a matrix is taken as zero, instead of being blown up to unit norm.
TINY = 1e-7


class Muon(MatrixOptimizer):
    """Steps parameters of shape `(..., rows, columns)`, every leading index a matrix of its own.

    Args:
        params: matrices, or groups of them; see `optimizer_for` for the rest of a model.
        lr: learning rate; with `scale="rms"` one tuned for AdamW serves.
        momentum: decay of the running mean of gradients.
        weight_decay: decoupled, times `lr`.
        is_nesterov: look ahead by one gradient.
        scale: what the orthogonal step is multiplied by, see the table above.
        dtype: of the iteration; bf16 is enough and is what the authors use.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        is_nesterov: bool = True,
        scale: Literal["rms", "shape"] = "rms",
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "is_nesterov": is_nesterov,
                "scale": scale,
            },
        )
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients that stand in `.grad`."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            updates = [split(self._averaged(p, group), group["parts"]) for p in params]
            orthogonal = _orthogonalise_each(updates, self.dtype)
            for p, update in zip(params, orthogonal, strict=True):
                step = join(update, group["parts"]).to(p.dtype)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(step, alpha=-group["lr"] * _scale(update.shape, group["scale"]))

    def _averaged(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """The running mean of the gradients of `p`, the next one anticipated."""
        state, mu = self.state[p], group["momentum"]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        mean: Tensor = state["momentum"].lerp_(p.grad, 1 - mu)
        return p.grad.lerp(mean, mu) if group["is_nesterov"] else mean


def orthogonalise(x: Tensor, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """U f(S) V^T of every matrix x = U S V^T `(..., rows, columns)`, f(S) near 1; in `dtype`."""
    a, b, c = COEFFICIENTS
    rows, columns = x.shape[-2:]
    y = x.to(dtype).flatten(0, -3) if x.ndim > 2 else x.to(dtype)[None]
    y = y.mT if rows > columns else y
    # The spectral norm is at most Frobenius's: all singular values start within [0, 1].
    y = y / torch.linalg.matrix_norm(y, keepdim=True).clamp(min=TINY)
    for _ in range(ITERATIONS):
        gram = y @ y.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        y = torch.baddbmm(y, polynomial, y, beta=a)
    return (y.mT if rows > columns else y).reshape(x.shape)


def _orthogonalise_each(updates: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """`orthogonalise` of every tensor, all matrices of one shape in one call."""
    done: list[Tensor] = list(updates)
    shapes: dict[object, list[int]] = {}
    for i, u in enumerate(updates):
        shapes.setdefault((u.shape[-2:], u.device), []).append(i)
    for alike in shapes.values():
        flat = [updates[i].reshape(-1, *updates[i].shape[-2:]) for i in alike]
        together = orthogonalise(torch.cat(flat), dtype=dtype)
        for i, part in zip(alike, together.split([len(f) for f in flat]), strict=True):
            done[i] = part.view(updates[i].shape)
    return done


def _scale(shape: torch.Size, rule: str) -> float:
    rows, columns = shape[-2:]
    if rule == "rms":
        return ADAMW_RMS * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))
