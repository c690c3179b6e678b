"""GPTQ: round column after column, and let the columns to come make up for each error.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv:2210.17323, algorithm 1, which minimises ||W X - Q X||^2 for each matrix.

| paper | here |
|---|---|
| W | `weight`, `(out, in)` |
| H = 2 X X^T + lambda I | `hessian`, X X^T over all calibration tokens; a factor changes nothing |
| lambda | `damping` times the mean of the diagonal |
| H^-1 <- Cholesky(H^-1)^T | `inverse`, upper triangular |
| B = 128 | `BLOCK` columns, whose errors reach the rest in one product |
| E_block | `errors` |

Act-order (the authors' code: `--act-order`) takes the columns with the largest diagonal first,
while most are left to make up for them. Scales of all groups are then chosen beforehand, from the
weights as they came (`--static-groups`): groups stay neighbours and the layout is that of any other
method. Without it a group's scale is chosen when its first column is reached, from what the weights
have become.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worthit.nn.quant.grid import Grid

BLOCK = 128
DAMPING = 0.01


def gptq(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    *,
    act_order: bool = True,
    damping: float = DAMPING,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Packed codes, scales and zeros of `weight` `(out, in)`.

    Args:
        hessian: sum of x x^T over what the matrix met, `(in, in)`.
        act_order: the columns with the largest inputs first.
        damping: added to the diagonal, as a share of its mean.
        dtype: of scales and zeros.
    """
    w = weight.detach().float().clone()
    columns = w.shape[1]
    group = grid.group or columns
    h = hessian.float().clone()
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1.0  # never met: whatever they are rounded to, nothing reads it
    # Of the weights as they came; without act-order those of groups to come are chosen anew.
    scales, zeros = grid.fit(w, dtype)
    order = torch.arange(columns, device=w.device)
    if act_order:
        order = h.diagonal().argsort(descending=True, stable=True)
        w, h = w[:, order], h[order][:, order]
    inverse = inverse_factor(h, damping)
    codes = torch.empty(columns, w.shape[0], device=w.device)  # fp32 holds every code
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.zeros(w.shape[0], end - start, device=w.device)
        for i in range(start, end):
            at = int(order[i]) // group
            if not act_order and grid.group is not None and i % group == 0:
                # Groups end within their block: every correction has reached this one.
                _refit(grid, w[:, i : i + group], scales, zeros, at, dtype)
            scale, zero = scales[:, at], None if zeros is None else zeros[:, at]
            code = grid.encode(w[:, i], scale, zero)
            codes[i] = code.float()
            errors[:, i - start] = (w[:, i] - grid.decode(code, scale, zero)) / inverse[i, i]
            rest = inverse[i, i + 1 : end]
            w[:, i + 1 : end] -= errors[:, i - start, None] * rest[None]
        w[:, end:] -= errors @ inverse[start:end, end:]
    in_place = codes[order.argsort()].T.contiguous().to(code.dtype)
    return grid.pack(in_place), scales, zeros


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper triangular U with U^T U = (H + damping)^-1; more damping where rounding asks it."""
    mean = hessian.diagonal().mean()
    for _ in range(6):
        damped = hessian.clone()
        damped.diagonal().add_(damping * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(factor)
            upper: Tensor
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper
        damping = 10 * damping
    # Inputs without direction: every column for itself, which is rounding to nearest.
    return torch.eye(len(hessian), device=hessian.device)


def _refit(
    grid: Grid,
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    at: int,
    dtype: torch.dtype,
) -> None:
    scale, zero = grid.fit(weight, dtype)
    scales[:, at] = scale[:, 0]
    if zeros is not None:
        assert zero is not None
        zeros[:, at] = zero[:, 0]
