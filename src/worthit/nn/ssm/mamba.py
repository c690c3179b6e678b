"""Mamba: a state space whose step, input and output depend on the token it reads.

Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv:2312.00752,
algorithm 2 and section 3.3. For each channel d and state n:

    h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t x_t        y_t = C_t . h_t + D x_t

| paper | here |
|---|---|
| D (width of the block's inside), N | `d_inner`, `d_state` |
| A | `a = -exp(log_a)`, `(d_inner, d_state)`; -1, -2, ..., -N at first (S4D-Real) |
| Delta, B, C | `step` `(batch, n, d_inner)`, `b`, `c` `(batch, n, d_state)`, projected from x |
| Parameter(Delta) | the bias of `step_proj`: softplus of it starts within 0.001 and 0.1 |
| D (skip) | `skip` |

B is discretised by Euler's rule, Delta B, as the paper's code does, not by the paper's zero-order
hold. Jamba and Falcon-Mamba normalise the step's low-rank input, B and C. States are kept in fp32.

`selective_scan_in_order` is the definition, `selective_scan_associatively` the parallel form, and
`selective_scan` what runs: tiles of tokens and channels that stay in the cache, states recomputed
in the backward pass, so that no tensor of n * d_inner * d_state elements ever exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from worthit.nn.cache import StateCache
from worthit.nn.ffn import ACTIVATIONS
from worthit.nn.mixer import Mixer
from worthit.nn.norm.rmsnorm import RMSNorm
from worthit.nn.ssm.causal_conv import CausalConv
from worthit.nn.ssm.scan import CHUNK, scan_associatively, scan_in_order, scan_tile_
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

STEP_MIN, STEP_MAX = 1e-3, 1e-1
# A tile's tokens, and its elements: small enough to stay near the core, large enough to be worth
# the calls.
TILE_TOKENS, TILE_ELEMENTS = 256, 2**21


class MambaMixer(Mixer):
    """The Mamba block: widen, convolve, scan, gate, narrow."""

    def __init__(self, mamba: spec.Mamba, model: spec.ModelSpec) -> None:
        super().__init__()
        m = self.spec = mamba
        self.in_proj = nn.Linear(model.d_model, 2 * m.d_inner, bias=m.has_bias)
        self.conv = CausalConv(m.d_inner, m.d_conv, has_bias=m.has_conv_bias)
        self.select = nn.Linear(m.d_inner, m.dt_rank + 2 * m.d_state, bias=False)
        self.step_proj = nn.Linear(m.dt_rank, m.d_inner)
        self.log_a = nn.Parameter(torch.arange(1.0, m.d_state + 1).log().repeat(m.d_inner, 1))
        self.skip = nn.Parameter(torch.ones(m.d_inner))
        self.out_proj = nn.Linear(m.d_inner, model.d_model, bias=m.has_bias)
        self.norms = nn.ModuleList()
        if m.has_inner_norms:
            self.norms.extend(
                RMSNorm(width, eps=m.norm_eps, has_weight=m.has_inner_norm_weights)
                for width in (m.dt_rank, m.d_state, m.d_state)
            )
        with torch.no_grad():
            nn.init.uniform_(self.step_proj.weight, -(m.dt_rank**-0.5), m.dt_rank**-0.5)
            self.step_proj.bias.copy_(inverse_softplus_steps(m.d_inner))

    def new_cache(self) -> StateCache:
        """`state` `(batch, d_state, d_inner)` and the convolution's last inputs."""
        return StateCache()

    def forward(self, x: Tensor, tokens: Tokens, cache: StateCache | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape."""
        act = ACTIVATIONS[self.spec.activation]
        inner, gate = self.in_proj(x).chunk(2, dim=-1)
        inner = act(self.conv(tokens.without_padding(inner), cache))
        inner = tokens.without_padding(inner)
        y = self._scan(inner, cache) * act(gate)
        out: Tensor = self.out_proj(y)
        return out

    def _scan(self, x: Tensor, cache: StateCache | None) -> Tensor:
        m = self.spec
        parts = self.select(x).split([m.dt_rank, m.d_state, m.d_state], dim=-1)
        if self.norms:
            parts = [norm(part) for norm, part in zip(self.norms, parts, strict=True)]
        low_rank, b, c = parts
        step = functional.softplus(self.step_proj(low_rank).float())
        a = -self.log_a.float().exp()
        start = None if cache is None else cache.get("state")
        y, state = selective_scan(x, step, a, b, c, start)
        if cache is not None:
            cache["state"] = state
        return y + x * self.skip.to(x.dtype)


def inverse_softplus_steps(n: int) -> Tensor:
    """Biases `(n,)` whose softplus is log-uniform within `STEP_MIN` and `STEP_MAX`."""
    low, high = math.log(STEP_MIN), math.log(STEP_MAX)
    steps = (torch.rand(n) * (high - low) + low).exp()
    return steps + torch.log(-torch.expm1(-steps))


def selective_scan_in_order(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, token by token. Shapes as in `selective_scan`."""
    decay, added, start = _recurrence(x, step, a, b, start)
    return _read(scan_in_order(decay, added, start), c, x)


def selective_scan_associatively(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same by a parallel prefix over all tokens."""
    decay, added, start = _recurrence(x, step, a, b, start)
    return _read(scan_associatively(decay, added, start), c, x)


def _recurrence(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Decay and input of every state, `(batch, n, d_state, d_inner)`, and the first state."""
    wide = torch.promote_types(x.dtype, torch.float32)
    decay = torch.exp(step.to(wide)[:, :, None] * a.T)
    added = b.to(wide)[..., None] * (step * x).to(wide)[:, :, None]
    return decay, added, torch.zeros_like(added[:, 0]) if start is None else start


def _read(states: Tensor, c: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    y = (c.to(states.dtype)[:, :, None] @ states)[:, :, 0]
    return y.to(x.dtype), states[:, -1]


def selective_scan(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs `(batch, n, d_inner)` and the last state `(batch, d_state, d_inner)`, fp32.

    Args:
        x: `(batch, n, d_inner)`.
        step: Delta, the same shape, positive.
        a: `(d_inner, d_state)`, negative.
        b: what a token writes, `(batch, n, d_state)`.
        c: what it reads, the same shape.
        start: the state before the first token; zeros where None.
    """
    if x.shape[1] == 1:
        decay, added, start = _recurrence(x, step, a, b, start)
        return _read(decay * start[:, None] + added, c, x)
    wide = torch.promote_types(x.dtype, torch.float32)
    if start is None:
        start = torch.zeros(x.shape[0], a.shape[1], x.shape[2], dtype=wide, device=x.device)
    # Time first: a token's states then lie together.
    x_, step_, b_, c_ = (t.to(wide).transpose(0, 1) for t in (x, step, b, c))
    y, state = _SelectiveScan.apply(x_, step_, a.to(wide).T.contiguous(), b_, c_, start.to(wide))
    return y.transpose(0, 1).to(x.dtype), state


def _tiles(x: Tensor, d_state: int) -> list[slice]:
    """Slices of the channels such that a tile of `TILE_TOKENS` holds about `TILE_ELEMENTS`."""
    n, batch, width = x.shape
    per_channel = min(n, TILE_TOKENS) * batch * d_state
    size = max(16, TILE_ELEMENTS // per_channel)
    return [slice(i, min(i + size, width)) for i in range(0, width, size)]


def _segments(n: int) -> Iterator[slice]:
    return (slice(i, min(i + TILE_TOKENS, n)) for i in range(0, n, TILE_TOKENS))


def _states_of_tile(
    step: Tensor, written: Tensor, a: Tensor, b: Tensor, start: Tensor, *, keeps_decay: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """States `(tokens, batch, d_state, channels)`, the last of them, and the decays if wanted.

    `written` is step * x. Padded to whole chunks: steps of 0 leave a state as it is.
    """
    missing = -step.shape[0] % CHUNK
    if missing:
        step, written, b = (functional.pad(t, (0, 0, 0, 0, 0, missing)) for t in (step, written, b))
    decay = (step[:, :, None] * a).exp_()
    states = b[..., None] * written[:, :, None]
    kept = decay.clone() if keeps_decay else None
    last = scan_tile_(decay, states, start)
    return states, last, kept


class _SelectiveScan(torch.autograd.Function):
    """The scan tile by tile. With G_t the gradient of everything that follows from h_t:

    G_t = C_t gy_t + exp(Delta_{t+1} A) G_{t+1}
    gC_t = h_t . gy_t        gB_t = G_t . (Delta x)_t        g(Delta x)_t = B_t . G_t
    g(Delta A)_t = G_t h_{t-1} exp(Delta_t A)
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        y, final = torch.empty_like(x), torch.empty_like(start)
        starts = []
        for part in _tiles(x, a.shape[0]):
            a_, carry = a[:, part].contiguous(), start[..., part]
            for seg in _segments(x.shape[0]):
                starts.append(carry)
                step_ = step[seg, :, part]
                states, carry, _ = _states_of_tile(
                    step_, step_ * x[seg, :, part], a_, b[seg], carry, keeps_decay=False
                )
                n = step_.shape[0]
                y[seg, :, part] = (c[seg][:, :, None] @ states[:n])[:, :, 0]
            final[..., part] = carry
        ctx.save_for_backward(x, step, a, b, c, *starts)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, g_final: Tensor) -> tuple[Tensor, ...]:
        x, step, a, b, c, *starts = ctx.saved_tensors
        gx, g_step = torch.empty_like(x), torch.empty_like(step)
        ga, gb, gc = torch.zeros_like(a), torch.zeros_like(b), torch.zeros_like(c)
        g_start = torch.empty_like(g_final)
        segments = list(_segments(x.shape[0]))
        for i, part in enumerate(_tiles(x, a.shape[0])):
            a_, carry = a[:, part].contiguous(), g_final[..., part]
            for j in range(len(segments) - 1, -1, -1):
                seg, start = segments[j], starts[i * len(segments) + j]
                x_, step_, gy_ = (t[seg, :, part].contiguous() for t in (x, step, gy))
                n, written = x_.shape[0], step_ * x_
                states, _, decay = _states_of_tile(
                    step_, written, a_, b[seg], start, keeps_decay=True
                )
                assert decay is not None
                total = torch.zeros_like(states)
                torch.mul(c[seg][..., None], gy_[:, :, None], out=total[:n])
                later = torch.cat([decay[1:], torch.ones_like(decay[:1])])
                scan_tile_(later, total, carry, is_backward=True)
                carry = decay[0] * total[0]
                gc[seg] += (states[:n] @ gy_[..., None])[..., 0]
                gb[seg] += (total[:n] @ written[..., None])[..., 0]
                g_written = (b[seg][:, :, None] @ total[:n])[:, :, 0]
                # The gradient of Delta A takes the place of the decays.
                decay[0].mul_(start)
                decay[1:].mul_(states[:-1])
                g_exponent = decay.mul_(total)[:n]
                gx[seg, :, part] = g_written * step_
                g_step[seg, :, part] = g_written * x_ + (g_exponent * a_).sum(dim=2)
                ga[:, part] += g_exponent.mul_(step_[:, :, None]).sum(dim=(0, 1))
            g_start[..., part] = carry
        return gx, g_step, ga, gb, gc, g_start
