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

`ssd_in_order` is the recurrence, `ssd_as_attention` the quadratic form, and `ssd` what runs: the
quadratic form within chunks and the recurrence between them (section 6), all by matrix products.
The chunk changes the work, not the result. Exponents are differences of sums within one chunk, so
that none is positive, and the sums are in fp64: their difference is small where it matters, and in
fp32 what strong decays before it have added would drown it. States are kept in fp32.
"""

from __future__ import annotations

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
from worthit.nn.ssm.scan import pad_to_chunks
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

# The decays of a fresh model are uniform within these (the paper's code).
A_MIN, A_MAX = 1.0, 16.0
# Tokens of a chunk: scores cost n * CHUNK, states n * d_state / CHUNK steps of more; both small.
CHUNK = 64


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
        y, state = ssd(x, step, -self.log_a.float().exp(), b, c, start)
        if cache is not None:
            cache["state"] = state
        return (y + x * self.skip.to(x.dtype)[:, None]).flatten(-2)


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
        unit: Tensor = _UnitPower.apply(x.float() * silu(gate.float()), self.n_groups, self.eps)
        return unit.to(x.dtype) * self.weight


class _UnitPower(torch.autograd.Function):
    """u = x / RMS(x) over each group of channels; gx = (g - u mean(g u)) / RMS(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, n_groups: int, eps: float) -> Tensor:
        grouped = x.unflatten(-1, (n_groups, -1))
        power = torch.linalg.vector_norm(grouped, dim=-1, keepdim=True).square()
        scale = torch.rsqrt(power / grouped.shape[-1] + eps)
        unit = grouped * scale
        ctx.save_for_backward(unit, scale)
        return unit.flatten(-2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        unit, scale = ctx.saved_tensors
        grouped = g.view_as(unit)
        along = (grouped * unit).mean(dim=-1, keepdim=True)
        return torch.addcmul(grouped, unit, -along).mul_(scale).flatten(-2), None, None


def ssd_in_order(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence, token by token. Shapes as in `ssd`."""
    (batch, _, heads, dim), groups = x.shape, b.shape[2]
    wide = torch.promote_types(x.dtype, torch.float32)
    b, c = (t.to(wide).repeat_interleave(heads // groups, dim=2) for t in (b, c))
    state = x.new_zeros(batch, heads, b.shape[3], dim, dtype=wide)
    if start is not None:
        state = _by_head(start.to(wide), heads)
    outputs = []
    for t in range(x.shape[1]):
        written = b[:, t, :, :, None] * (step[:, t, :, None] * x[:, t])[:, :, None]
        state = torch.exp(step[:, t] * a)[..., None, None] * state + written
        outputs.append((c[:, t, :, None] @ state)[:, :, 0])
    by_group = state.unflatten(1, (groups, -1)).transpose(2, 3).flatten(3)
    return torch.stack(outputs, dim=1).to(x.dtype), by_group


def ssd_as_attention(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The quadratic form from a state of zeros: scores C B^T, weighed down by the decay between."""
    heads, groups = x.shape[2], b.shape[2]
    wide = torch.promote_types(x.dtype, torch.float32)
    scores = torch.einsum("btgn,bsgn->bgts", c.to(wide), b.to(wide))
    scores = scores.repeat_interleave(heads // groups, dim=1)
    decays = decays_between((step * a).double().transpose(1, 2).cumsum(dim=-1), wide)
    return torch.einsum("bhts,bshp->bthp", scores * decays, (step[..., None] * x).to(wide)).to(x)


def decays_between(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """L: exp(sum_t - sum_s) for s <= t, zero above; `(..., T)` running sums to `(..., T, T)`.

    Differences are taken in the sums' own type, and the rest, which is n * T elements, in `dtype`.
    """
    decays: Tensor = _Decays.apply(sums, dtype)
    return decays


class _Decays(torch.autograd.Function):
    """With G the gradient of L: that of sum_t is row t of G o L less its column t, each summed."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, dtype: torch.dtype) -> Tensor:
        length = sums.shape[-1]
        is_future = torch.ones(length, length, dtype=torch.bool, device=sums.device).triu(1)
        between = torch.empty(*sums.shape, length, dtype=dtype, device=sums.device)
        torch.sub(sums[..., :, None], sums[..., None, :], out=between)
        decays = between.masked_fill_(is_future, -torch.inf).exp_()
        ctx.save_for_backward(decays)
        ctx.sums_dtype = sums.dtype
        return decays

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (decays,) = ctx.saved_tensors
        weights = g * decays
        return (weights.sum(dim=-1) - weights.sum(dim=-2)).to(ctx.sums_dtype), None


class _Carry(torch.autograd.Function):
    """States before each chunk, and the last: S_{i+1} = kept_i S_i + left_i.

    `left` `(batch, chunks, n_groups, d_state, width)`; `kept` the same with one state.
    With G_i the gradient of S_i and of all that follows: G_i = g_i + kept_i G_{i+1}.
    """

    @staticmethod
    def forward(ctx: Any, kept: Tensor, left: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        starts = torch.empty_like(left)
        state = start
        for i in range(left.shape[1]):
            starts[:, i] = state
            state = torch.addcmul(left[:, i], kept[:, i], state)
        ctx.save_for_backward(kept, starts)
        return starts, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept, starts = ctx.saved_tensors
        g_left, g_kept = torch.empty_like(starts), torch.empty_like(kept)
        for i in range(starts.shape[1] - 1, -1, -1):
            g_left[:, i] = total
            g_kept[:, i] = (total * starts[:, i]).sum(dim=2, keepdim=True)
            total = torch.addcmul(g[:, i], kept[:, i], total)
        return g_kept, g_left, total


def _by_head(state: Tensor, heads: int) -> Tensor:
    """`(batch, n_groups, d_state, heads of a group * head_dim)` as `(batch, heads, ...)`."""
    per_group = heads // state.shape[1]
    return state.unflatten(3, (per_group, -1)).transpose(2, 3).flatten(1, 2)


def ssd(
    x: Tensor,
    step: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    start: Tensor | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Outputs `(batch, n, n_heads, head_dim)` and the last state, fp32.

    Args:
        x: `(batch, n, n_heads, head_dim)`.
        step: Delta, `(batch, n, n_heads)`, not negative.
        a: `(n_heads,)`, negative.
        b: what a token writes, `(batch, n, n_groups, d_state)`.
        c: what it reads, the same shape.
        start: `(batch, n_groups, d_state, heads of a group * head_dim)`; zeros where None.
    """
    batch, n, heads, dim = x.shape
    groups, d_state = b.shape[2:]
    wide = torch.promote_types(x.dtype, torch.float32)
    if start is None:
        start = x.new_zeros(batch, groups, d_state, heads // groups * dim, dtype=wide)
    if n == 1:
        return _one_step(x, step, a, b, c, start)
    chunk = min(chunk, n)
    x_, step_, b_, c_ = (pad_to_chunks(t.to(wide), chunk) for t in (x, step, b, c))
    x_, step_, b_, c_ = (t.unflatten(1, (-1, chunk)) for t in (x_, step_, b_, c_))
    # Sums of Delta A from the start of each chunk, (batch, chunks, T, heads).
    sums = (step_ * a).double().cumsum(dim=2)
    written = step_[..., None] * x_  # (batch, chunks, T, heads, head_dim)

    # Within chunks: the quadratic form.
    scores = c_.transpose(2, 3) @ b_.permute(0, 1, 3, 4, 2)  # (batch, chunks, groups, T, T)
    decays = decays_between(sums.transpose(2, 3), wide).unflatten(2, (groups, -1))
    weights = (scores[:, :, :, None] * decays).flatten(2, 3)
    y = (weights @ written.transpose(2, 3)).transpose(2, 3)

    # What each chunk leaves to the next: one product a group, heads side by side.
    left = (sums[:, :, -1:] - sums).to(wide).exp()[..., None] * written
    left = left.unflatten(3, (groups, -1)).transpose(2, 3).flatten(4)  # (.., groups, T, heads*dim)
    left = b_.permute(0, 1, 3, 4, 2) @ left
    kept = sums[:, :, -1].to(wide).exp().unflatten(2, (groups, -1)).repeat_interleave(dim, dim=3)
    starts, state = _Carry.apply(kept[:, :, :, None], left, start.to(wide))

    # What each token reads of its chunk's start.
    read = c_.transpose(2, 3) @ starts  # (.., groups, T, heads * dim)
    read = read.unflatten(4, (-1, dim)).transpose(2, 3).flatten(3, 4)
    y = y + sums.to(wide).exp()[..., None] * read
    return y.flatten(1, 2)[:, :n].to(x.dtype), state


def _one_step(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    groups, dim = b.shape[2], x.shape[3]
    wide = start.dtype
    kept = torch.exp(step * a)[:, 0].unflatten(1, (groups, -1)).repeat_interleave(dim, dim=2)
    written = (step[..., None] * x)[:, 0].to(wide).unflatten(1, (groups, -1)).flatten(2)
    state = kept[:, :, None] * start + b[:, 0].to(wide)[..., None] * written[:, :, None]
    y = (c[:, 0].to(wide)[:, :, None] @ state).flatten(1).unflatten(1, (-1, dim))
    return y[:, None].to(x.dtype), state
