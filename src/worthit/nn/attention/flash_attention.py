"""Flash attention: exact attention in tiles, so that no n x n matrix is ever kept.

Dao et al. 2022, "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness",
arXiv:2205.14135; in the form of Dao 2023, "FlashAttention-2", arXiv:2307.08691, algorithms 1 and 2:

    m' = max(m, rowmax S)        l' = e^(m - m') l + rowsum e^(S - m')
    O' = e^(m - m') O + e^(S - m') V        at the end O / l,    L = m + log l
    P = e^(S - L)    D = rowsum(dO * O)    dV = P^T dO    dS = P * (dO V^T - D)

| paper | here |
|---|---|
| B_r, B_c | `q_tile`, `k_tile`: rows of queries and of keys taken at once |
| m, l, O | `top`, `total`, `out`: running maximum, sum and unscaled output of a tile's rows |
| L | `lse`, `(batch, n_heads, n)`: natural logarithm of each row's sum, all that backward needs |
| D | `row_dot` |

This is the reading copy, in plain operations: the tiles and their order are the kernel's, the speed
is not. A fused kernel runs where `core.attend` calls `scaled_dot_product_attention`. Rows that see
no key give 0 and an `lse` of minus infinity.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from worthit.nn.attention.core import repeat_heads

TILE = 64


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    q_tile: int = TILE,
    k_tile: int = TILE,
) -> tuple[Tensor, Tensor]:
    """Attention output `(batch, n_heads, n, d_v)` and `lse` `(batch, n_heads, n)`, tile by tile.

    Args:
        q: `(batch, n_heads, n, d)`.
        k, v: `(batch, n_kv_heads, m, ...)`; the last query stands at the last key when causal.
        scale: multiplies the scores; 1/sqrt(d) where None.
    """
    groups = q.shape[1] // k.shape[1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k, v = repeat_heads(k, groups), repeat_heads(v, groups)
    out, lse = _Flash.apply(q, k, v, scale, is_causal, q_tile, k_tile)
    return out, lse


def fused(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, is_causal: bool = False
) -> Tensor:
    """The same by the library's fused kernel; heads and lengths of q, k and v equal."""
    return functional.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=is_causal)


def merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Attention over several sets of keys from attention over each: outputs weighed by e^lse."""
    lse = torch.stack([part for _, part in parts]).logsumexp(dim=0)
    out = sum(o * _weight(part - lse)[..., None] for o, part in parts)
    assert isinstance(out, Tensor)
    return out, lse


def _weight(log: Tensor) -> Tensor:
    # Minus infinity less minus infinity: no key in any part.
    return torch.nan_to_num(log, nan=-math.inf).exp()


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        is_causal: bool,
        q_tile: int,
        k_tile: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.settings = scale, is_causal, q_tile, k_tile
        n = q.shape[2]
        out = q.new_empty(*q.shape[:3], v.shape[-1])
        lse = torch.empty(q.shape[:3], dtype=_wide(q), device=q.device)
        for i in range(0, n, q_tile):
            rows = slice(i, min(i + q_tile, n))
            top = torch.full_like(lse[:, :, rows], -math.inf)
            total = torch.zeros_like(top)
            o = torch.zeros(*top.shape, v.shape[-1], dtype=top.dtype, device=q.device)
            for j in _tiles(rows, q, k, is_causal, k_tile):
                s = _scores(q, k, rows, j, scale, is_causal)
                higher = torch.maximum(top, s.amax(dim=-1))
                # A row that has seen no key yet has nothing to rescale.
                base = higher.masked_fill(higher == -math.inf, 0.0)
                p, kept = (s - base[..., None]).exp(), (top - base).exp()
                total = kept * total + p.sum(dim=-1)
                o = kept[..., None] * o + p @ v[:, :, j].to(p.dtype)
                top = higher
            seen = total > 0
            out[:, :, rows] = (o / total.where(seen, 1.0)[..., None]).to(q.dtype)
            lse[:, :, rows] = torch.where(seen, top + total.log(), -math.inf)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        scale, is_causal, q_tile, k_tile = ctx.settings
        wide = _wide(q)
        dq, dk, dv = (torch.zeros_like(t, dtype=wide) for t in (q, k, v))
        row_dot = (d_out.to(wide) * out.to(wide)).sum(dim=-1)
        # A row without keys: e^(-inf - 0) is the 0 that its probabilities are.
        finite = lse.masked_fill(lse == -math.inf, 0.0)
        for i in range(0, q.shape[2], q_tile):
            rows = slice(i, min(i + q_tile, q.shape[2]))
            d_rows = d_out[:, :, rows].to(wide)
            for j in _tiles(rows, q, k, is_causal, k_tile):
                s = _scores(q, k, rows, j, scale, is_causal)
                p = (s - finite[:, :, rows, None]).exp()
                dv[:, :, j] += p.transpose(-1, -2) @ d_rows
                dp = d_rows @ v[:, :, j].to(wide).transpose(-1, -2)
                ds = p * (dp - row_dot[:, :, rows, None]) * scale
                dq[:, :, rows] += ds @ k[:, :, j].to(wide)
                dk[:, :, j] += ds.transpose(-1, -2) @ q[:, :, rows].to(wide)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None, None


def _wide(x: Tensor) -> torch.dtype:
    """What sums are kept in: fp32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def _tiles(rows: slice, q: Tensor, k: Tensor, is_causal: bool, k_tile: int) -> list[slice]:
    """The tiles of keys that some query of `rows` sees: above the diagonal nothing is computed."""
    end = k.shape[2]
    if is_causal:
        end = max(0, min(end, rows.stop + k.shape[2] - q.shape[2]))
    return [slice(j, min(j + k_tile, end)) for j in range(0, end, k_tile)]


def _scores(
    q: Tensor, k: Tensor, rows: slice, columns: slice, scale: float, is_causal: bool
) -> Tensor:
    """One tile of S, minus infinity where a key lies behind its query."""
    wide = _wide(q)
    s = q[:, :, rows].to(wide) @ k[:, :, columns].to(wide).transpose(-1, -2) * scale
    if is_causal:
        past = k.shape[2] - q.shape[2]
        i = torch.arange(rows.start, rows.stop, device=q.device)[:, None] + past
        j = torch.arange(columns.start, columns.stop, device=q.device)[None, :]
        s = s.masked_fill(j > i, -math.inf)
    return s
