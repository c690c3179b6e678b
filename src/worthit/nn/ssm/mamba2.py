"""Mamba-2: a state space that is also an attention with decaying weights.

Dao & Gu 2024, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through
Structured State Space Duality", arXiv:2405.21060, sections 5 to 7. For each head, with one decay a
head in place of Mamba's one a channel and state:

    S_t = exp(Delta_t A) S_{t-1} + B_t (Delta_t x_t)^T        y_t = S_t^T C_t + D x_t

and, all tokens at once (the duality, equation 16):

    Y = (L o C B^T) (Delta X),        L_ts = exp(sum_{s < r <= t} Delta_r A) for s <= t, else 0

| paper | here |
|---|---|
| H, P, N, G | `n_heads`, `head_dim`, `d_state`, `n_groups`: heads of a group share B and C |
| X, B, C | `x` `(batch, n, n_heads, head_dim)`, `b`, `c` `(batch, n, n_groups, d_state)` |
| Delta, A | `step` `(batch, n, n_heads)`, `a = -exp(log_a)` `(n_heads,)` |
| D (skip) | `skip` |

`worthit.nn.ssm.ssd` has the recurrence (`ssd_in_order`), the quadratic form (`ssd_as_attention`)
and what runs: the quadratic form within chunks and the recurrence between them (section 6), all by
matrix products. Here is what stands around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from worthit.nn.cache import StateCache
from worthit.nn.ffn import ACTIVATIONS
from worthit.nn.mixer import Mixer
from worthit.nn.norm.swiglu import silu
from worthit.nn.ssm.causal_conv import CausalConv
from worthit.nn.ssm.mamba import inverse_softplus_steps
from worthit.nn.ssm.ssd import ssd
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

# The decays of a fresh model are uniform within these (the paper's code).
A_MIN, A_MAX = 1.0, 16.0
# Tokens that the gated norm treats at a time: they stay in the cache.
BLOCK = 256


class Mamba2Mixer(Mixer):
    """The Mamba-2 block: one projection for everything, convolve, SSD, gated norm, narrow."""

    def __init__(self, mamba2: spec.Mamba2, model: spec.ModelSpec) -> None:
        super().__init__()
        m = self.spec = mamba2
        groups = m.n_groups * m.d_state
        # Gate, then what the convolution reads (x, B, C), then the step.
        self.widths = [m.d_inner, m.d_inner + 2 * groups, m.n_heads]
        self.in_proj = nn.Linear(model.d_model, sum(self.widths), bias=m.has_bias)
        self.conv = CausalConv(m.d_inner + 2 * groups, m.d_conv, has_bias=m.has_conv_bias)
        self.step_bias = nn.Parameter(inverse_softplus_steps(m.n_heads))
        self.log_a = nn.Parameter(torch.empty(m.n_heads).uniform_(A_MIN, A_MAX).log())
        self.skip = nn.Parameter(torch.ones(m.n_heads))
        self.norm = GatedGroupNorm(m) if m.has_output_norm else None
        self.out_proj = nn.Linear(m.d_inner, model.d_model, bias=m.has_out_bias)
        self._scales = self._part_scales()

    def _part_scales(self) -> list[tuple[float, int]] | None:
        """Each of the five multipliers with how many channels it is for; None where all are 1."""
        m = self.spec
        if m.part_scales == (1.0,) * 5:
            return None
        groups = m.n_groups * m.d_state
        widths = (m.d_inner, m.d_inner, groups, groups, m.n_heads)
        return list(zip(m.part_scales, widths, strict=True))

    def new_cache(self) -> StateCache:
        """`state` `(batch, n_groups, d_state, heads of a group * head_dim)`; the conv's inputs."""
        return StateCache()

    def forward(self, x: Tensor, tokens: Tokens, cache: StateCache | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape."""
        m = self.spec
        projected = self.in_proj(x if m.in_scale == 1.0 else x * m.in_scale)
        if self._scales is not None:
            scale = [torch.full((width,), value) for value, width in self._scales]
            projected = projected * torch.cat(scale).to(projected)
        gate, inner, step = projected.split(self.widths, dim=-1)
        inner = ACTIVATIONS[m.activation](self.conv(tokens.without_padding(inner), cache))
        y = self._ssd(tokens.without_padding(inner), step, cache)
        y = y * silu(gate.float()).to(y.dtype) if self.norm is None else self.norm(y, gate)
        out: Tensor = self.out_proj(y)
        return out if m.out_scale == 1.0 else out * m.out_scale

    def _ssd(self, inner: Tensor, step: Tensor, cache: StateCache | None) -> Tensor:
        m = self.spec
        groups = m.n_groups * m.d_state
        x, b, c = inner.split([m.d_inner, groups, groups], dim=-1)
        x = x.unflatten(-1, (m.n_heads, m.head_dim))
        b, c = (t.unflatten(-1, (m.n_groups, m.d_state)) for t in (b, c))
        step = functional.softplus(step.float() + self.step_bias.float())
        if m.dt_min > 0 or m.dt_max is not None:
            step = step.clamp(m.dt_min, m.dt_max)
        start = None if cache is None else cache.get("state")
        y, state = ssd(x, step, -self.log_a.float().exp(), b, c, start, skip=self.skip)
        if cache is not None:
            cache["state"] = state
        return y.flatten(-2)


class GatedGroupNorm(nn.Module):
    """An RMS norm over each of `n_groups` groups of channels, after the gate or before it."""

    def __init__(self, mamba2: spec.Mamba2) -> None:
        super().__init__()
        m = mamba2
        self.n_groups, self.eps = m.n_groups, m.norm_eps
        self.is_norm_before_gate = m.is_norm_before_gate
        self.weight = nn.Parameter(torch.ones(m.d_inner))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """`(batch, n, d_inner)`, both."""
        if self.is_norm_before_gate:
            grouped = x.float().unflatten(-1, (self.n_groups, -1))
            y = functional.rms_norm(grouped, grouped.shape[-1:], eps=self.eps).flatten(-2)
            return (y * self.weight.float() * silu(gate.float())).to(x.dtype)
        out: Tensor = _GatedNorm.apply(x, gate, self.weight, self.n_groups, self.eps)
        return out


class _GatedNorm(torch.autograd.Function):
    """u w with u = z / RMS(z), z = x silu(gate), over each group of channels, block by block.

    With g the gradient of u, gz = (g - u mean(g u)) / RMS(z); silu' = s + silu (1 - s), s the
    sigmoid.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, n_groups: int, eps: float
    ) -> Tensor:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        wide = torch.promote_types(x.dtype, torch.float32)
        for block in _blocks(x):
            z = x[:, block].to(wide) * silu(gate[:, block].to(wide))
            unit, _ = _unit(z, n_groups, eps)
            torch.mul(unit.to(x.dtype), weight, out=y[:, block])
        ctx.save_for_backward(x, gate, weight)
        ctx.n_groups, ctx.eps = n_groups, eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, weight = ctx.saved_tensors
        gx, g_gate = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, gate))
        wide = torch.promote_types(x.dtype, torch.float32)
        g_weight = torch.zeros_like(weight, dtype=wide)
        for block in _blocks(x):
            g, x_, gate_ = (t[:, block].to(wide) for t in (gy, x, gate))
            s = torch.sigmoid(gate_)
            passed = gate_ * s
            unit, scale = _unit(x_ * passed, ctx.n_groups, ctx.eps)
            g_unit = g * unit
            g_weight += g_unit.sum(dim=(0, 1))
            along = g_unit.mul_(weight).unflatten(2, (ctx.n_groups, -1)).mean(dim=-1, keepdim=True)
            by_group = (g * weight).unflatten(2, (ctx.n_groups, -1))
            by_group.addcmul_(unit.view_as(by_group), along, value=-1).mul_(scale)
            gz = by_group.flatten(2)
            torch.mul(gz, passed, out=gx[:, block])
            slope = passed.mul_(1 - s).add_(s)
            torch.mul(gz.mul_(x_), slope, out=g_gate[:, block])
        return gx, g_gate, g_weight.to(weight.dtype), None, None


def _unit(z: Tensor, n_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """u in the shape of `z`, and 1 / RMS(z) by group."""
    grouped = z.unflatten(2, (n_groups, -1))
    power = torch.linalg.vector_norm(grouped, dim=-1, keepdim=True).square()
    scale = torch.rsqrt(power / grouped.shape[-1] + eps)
    return (grouped * scale).flatten(2), scale


def _blocks(x: Tensor) -> Iterator[slice]:
    return (slice(i, i + BLOCK) for i in range(0, x.shape[1], BLOCK))
