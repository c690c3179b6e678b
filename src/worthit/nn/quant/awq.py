"""AWQ: make the channels that matter larger before rounding, and smaller after.

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
arXiv:2306.00978, sections 3.2 and 3.3, equations 4 and 5.

| paper | here |
|---|---|
| s_X, the average magnitude of each input channel | `magnitude` |
| s = s_X^alpha, alpha from a grid on [0, 1] | `scale_of`, `ALPHAS` |
| L(s) = norm(Q(W diag(s)) diag(s)^-1 X - W X) | `loss` |
| clipping of weights that minimises the error | `clipped` |

Here the squared loss is taken over all calibration tokens at once, as tr(D H D^T) with H = X X^T
and D the change of the matrix, summed over the matrices that read the same input; the authors'
code runs a few samples through the whole attention or feed-forward. Clipping looks at each group
by itself, as theirs does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worthit.nn.quant.grid import Grid
from worthit.nn.quant.linear import rounded, widened

ALPHAS = tuple(i / 20 for i in range(20))
# A group's range, of its own: the authors try ten from 1 downwards.
SHRINKS = tuple(1 - i / 20 for i in range(10))
# Rows at once, so that what comes in between stays small.
ROWS = 256


def scale_of(magnitude: Tensor, alpha: float) -> Tensor:
    """s_X^alpha, with its extremes around 1."""
    s = magnitude.float().clamp_min(1e-4) ** alpha
    return s / (s.max() * s.min()).sqrt()


def loss(weights: Sequence[Tensor], s: Tensor, hessian: Tensor, grid: Grid) -> float:
    """L(s), squared: how far outputs move when the `weights` are rounded after scaling by `s`."""
    total = 0.0
    for weight in weights:
        w = weight.float()
        scaled = widened(grid, *rounded(grid, w * s)) / s
        total += output_error(scaled - w, hessian)
    return total


def output_error(change: Tensor, hessian: Tensor) -> float:
    """The squared change of a matrix's outputs over all tokens: tr(D H D^T)."""
    return float(((change @ hessian) * change).sum())


def search_scale(
    weights: Sequence[Tensor], magnitude: Tensor, hessian: Tensor, grid: Grid
) -> tuple[Tensor, float]:
    """The scale of the input channels with the least loss, `(in,)`, and its alpha.

    Args:
        weights: the matrices `(out, in)` that read the same input.
        magnitude: mean absolute value of each input channel, `(in,)`.
        hessian: sum of x x^T, `(in, in)`.
    """
    tried = {a: loss(weights, scale_of(magnitude, a), hessian, grid) for a in ALPHAS}
    alpha = min(tried, key=lambda a: tried[a])
    return scale_of(magnitude, alpha), alpha


def clipped(weight: Tensor, hessian: Tensor, grid: Grid) -> Tensor:
    """`weight` cut off, group by group, where that makes the outputs' error least."""
    n_groups = grid.n_groups(weight.shape[1])
    h = torch.stack(_diagonal_blocks(hessian, n_groups))
    parts = []
    for rows in weight.float().split(ROWS):
        grouped = grid.groups(rows)
        top = grouped.abs().amax(-1, keepdim=True)
        best, least = grouped, torch.full_like(top[..., 0], torch.inf)
        for shrink in SHRINKS:
            cut = torch.minimum(torch.maximum(grouped, -shrink * top), shrink * top)
            change = grid.groups(widened(grid, *rounded(grid, cut.flatten(-2)))) - grouped
            error = (torch.einsum("ogi,gij->ogj", change, h) * change).sum(-1)
            is_better = error < least
            best = torch.where(is_better[..., None], cut, best)
            least = torch.where(is_better, error, least)
        parts.append(best.flatten(-2))
    return torch.cat(parts).to(weight.dtype)


def _diagonal_blocks(hessian: Tensor, n: int) -> list[Tensor]:
    size = len(hessian) // n
    return [hessian[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(n)]
