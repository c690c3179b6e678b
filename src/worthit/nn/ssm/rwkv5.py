"""RWKV-5 (Eagle): the fading sums become a matrix a head.

Peng et al. 2024, "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence",
arXiv:2404.05892, section 4.1 (version 5.2, with the gate). For each head:

    o_t = r_t (S_{t-1} + diag(u) k_t^T v_t)        S_t = diag(w) S_{t-1} + k_t^T v_t

| paper | here |
|---|---|
| w = exp(-exp(omega)) | `exp(log_decay)`, `log_decay = -exp(omega)`; constant, one a key channel |
| u | `bonus`, `(n_heads, head_dim)`: the token's own weight, in place of a decay |
| S | `state`, `(batch, n_heads, head_dim, head_dim)`, fp32: keys, then values |
| mu_r, mu_k, mu_v, mu_g | `mix_...`: the share of the token itself in what is projected |
| SiLU(g) | the gate; before it each head is normalised (a group norm) |

`wkv_in_order` is the definition, `wkv_in_chunks` gated linear attention of the tokens moved by one:
what token t reads is the state that token t - 1 left. Both take decays that differ between tokens,
which is what version 6 adds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.attention.gated_linear_attention import attend_in_chunks
from worthit.nn.cache import StateCache
from worthit.nn.mixer import Mixer
from worthit.nn.ssm.rwkv import decay_speeds, shift_mix, shifted
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

# The published code divides by 8 and adds 1e-5 to the variance: the same as this alone.
NORM_EPS = 64e-5


class TimeMixing5(Mixer):
    """RWKV-5's mixer."""

    def __init__(self, rwkv: spec.Rwkv, model: spec.ModelSpec) -> None:
        super().__init__()
        self.spec, self.n_heads = rwkv, rwkv.n_heads
        d, inner = model.d_model, rwkv.d_attention
        self.mix_key, self.mix_value, self.mix_receptance, self.mix_gate = (
            shift_mix(d) for _ in range(4)
        )
        self.omega = nn.Parameter(decay_speeds(inner).view(rwkv.n_heads, -1))
        self.bonus = nn.Parameter(torch.zeros(rwkv.n_heads, rwkv.head_dim))
        self.key, self.value, self.receptance, self.gate = (
            nn.Linear(d, inner, bias=False) for _ in range(4)
        )
        self.output = nn.Linear(inner, d, bias=False)
        self.norm = HeadNorm(inner, rwkv.n_heads)

    def new_cache(self) -> StateCache:
        """`state`, and the last input as `conv`."""
        return StateCache()

    def forward(self, x: Tensor, tokens: Tokens, cache: StateCache | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape."""
        x = tokens.without_padding(x)
        before = shifted(x, cache)
        r = by_head(self.receptance(torch.lerp(before, x, self.mix_receptance)), self.n_heads)
        k = by_head(self.key(torch.lerp(before, x, self.mix_key)), self.n_heads)
        v = by_head(self.value(torch.lerp(before, x, self.mix_value)), self.n_heads)
        g = functional.silu(self.gate(torch.lerp(before, x, self.mix_gate)))
        log_decay = -self.omega.to(k.dtype).exp()[:, None].expand_as(k)
        past = None if cache is None else cache.get("state")
        u, chunk = self.bonus.to(k.dtype), self.spec.chunk
        y, state = wkv_in_chunks(r, k, v, log_decay, u, past, chunk=chunk)
        if cache is not None:
            cache["state"] = state
        out: Tensor = self.output(self.norm(y).to(x.dtype) * g)
        return out


class HeadNorm(nn.Module):
    """Zero mean and unit variance of each head, then a weight and a bias for each channel."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, n_heads, n, head_dim)` to `(batch, n, n_heads * head_dim)`."""
        y = functional.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
        return y.transpose(1, 2).flatten(2) * self.weight.to(x.dtype) + self.bias.to(x.dtype)


def by_head(x: Tensor, n_heads: int) -> Tensor:
    """`(batch, n, n_heads * head_dim)` to `(batch, n_heads, n, head_dim)`, at least fp32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.to(wide).unflatten(-1, (n_heads, -1)).transpose(1, 2)


def wkv_in_order(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, u: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs and the last state, token by token: the reference. Shapes as below."""
    if state is None:
        state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    out = []
    for t in range(r.shape[2]):
        added = k[:, :, t, :, None] * v[:, :, t, None, :]
        out.append((r[:, :, t, None, :] @ (state + u[..., None] * added))[:, :, 0])
        state = log_decay[:, :, t, :, None].exp() * state + added
    return torch.stack(out, dim=2), state


def wkv_in_chunks(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    u: Tensor,
    state: Tensor | None = None,
    *,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Outputs and the last state.

    Args:
        r, k, v: `(batch, n_heads, n, head_dim)`.
        log_decay: log w_t, the same shape, not positive.
        u: `(n_heads, head_dim)`.
        state: `(batch, n_heads, head_dim, head_dim)`; zeros where None.
    """
    if r.shape[2] == 1:
        return wkv_in_order(r, k, v, log_decay, u, state)

    def moved(x: Tensor) -> Tensor:
        return functional.pad(x[:, :, :-1], (0, 0, 1, 0))

    read, before = attend_in_chunks(r, moved(k), moved(v), moved(log_decay), state, chunk=chunk)
    own = (r * u[:, None] * k).sum(dim=-1, keepdim=True) * v
    last = log_decay[:, :, -1, :, None].exp() * before
    return read + own, last + k[:, :, -1, :, None] * v[:, :, -1, None, :]
