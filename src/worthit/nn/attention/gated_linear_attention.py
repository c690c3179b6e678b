"""Gated linear attention: every token says, channel by channel, how much of the state to keep.

Yang et al. 2023, "Gated Linear Attention Transformers with Hardware-Efficient Training",
arXiv:2312.06635, equations 3-5 and section 4.3:

    S_t = diag(alpha_t) S_{t-1} + k_t^T v_t        o_t = q_t S_t
    alpha_t = sigmoid(x_t W_alpha)^(1/tau)

| paper | here |
|---|---|
| log alpha_t | `log_decay`, `(batch, heads, n, key_dim)`: below zero, `logsigmoid(.) / TAU` |
| b_t, running products of alpha | `total`: running sums of `log_decay` within a chunk |
| S_t | `state`, `(batch, heads, key_dim, value_dim)`, fp32 |
| sub-chunks, secondary chunking | `SUB_CHUNK` tokens |

Of the decay between two tokens only exp(b_t - b_s) is ever taken, never exp(b_t) and exp(-b_s):
the second overflows fp32 within a hundred tokens. Between sub-chunks both are measured from the
first token of the later one, so that neither exponent is above zero and the scores stay a matrix
product; within a sub-chunk the differences are written down. W_alpha is one full matrix; the paper
makes it of two narrow ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.attention.linear_attention import LinearMixer, heads, in_chunks
from worthit.nn.attention.retnet import carried
from worthit.nn.cache import StateCache
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

# tau: gates near 1 from the start (section 4.4).
TAU = 16.0
SUB_CHUNK = 16


class GatedLinearAttention(LinearMixer):
    """The rule: each key channel of the state fades by what the token's gate says."""

    def __init__(self, attention: spec.LinearAttention, model: spec.ModelSpec) -> None:
        super().__init__(attention, model)
        self.decay_proj = nn.Linear(model.d_model, self.keys, bias=False)

    def recall(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        x: Tensor,
        tokens: Tokens,
        cache: StateCache | None,
    ) -> Tensor:
        """`q S`."""
        a = self.spec
        log_decay = functional.logsigmoid(heads(self.decay_proj(x).to(q.dtype), a.key_dim)) / TAU
        q = q / math.sqrt(a.key_dim)
        out, state = attend_in_chunks(
            self.repeated(q),
            self.repeated(k),
            v,
            self.repeated(log_decay),
            None if cache is None else cache.get("state"),
            chunk=a.chunk,
        )
        if cache is not None:
            cache["state"] = state
        return out


def attend_in_order(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs and the last state, token by token: the reference."""
    if state is None:
        state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    out = []
    for t in range(q.shape[2]):
        kept = log_decay[:, :, t, :, None].exp() * state
        state = kept + k[:, :, t, :, None] * v[:, :, t, None, :]
        out.append((q[:, :, t, None, :] @ state)[..., 0, :])
    return torch.stack(out, dim=2), state


def attend_in_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    *,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Outputs and the last state: scores within chunks, faded states between them."""
    n = q.shape[2]
    if n == 1:
        return attend_in_order(q, k, v, log_decay, state)
    size = min(chunk, n)
    # Zeros behind the last token store nothing and, in the log, fade nothing.
    q, k, v, log_decay = (in_chunks(t, size) for t in (q, k, v, log_decay))
    total = log_decay.cumsum(dim=-2)
    end = total[..., -1:, :]
    added = (k * (end - total).exp()).transpose(-1, -2) @ v
    before, last = carried(added, end.exp().transpose(-1, -2), state)
    out = scores(q, k, total) @ v + (q * total.exp()) @ before
    return out.flatten(2, 3)[:, :, :n], last


def scores(q: Tensor, k: Tensor, total: Tensor) -> Tensor:
    """sum_d q_td k_sd exp(b_td - b_sd) for s <= t within each chunk, `(..., size, size)`."""
    size = q.shape[-2]
    rows = []
    for start in range(0, size, SUB_CHUNK):
        own = slice(start, min(start + SUB_CHUNK, size))
        fade = total[..., own, None, :] - total[..., None, own, :]
        lower = torch.ones(fade.shape[-3:-1], dtype=torch.bool, device=q.device).tril()
        # Above the diagonal the difference is positive: cut before the exponential.
        fade = fade.masked_fill(~lower[..., None], -math.inf).exp()
        near = torch.einsum("...td,...sd,...tsd->...ts", q[..., own, :], k[..., own, :], fade)
        parts = [near, near.new_zeros(*near.shape[:-1], size - own.stop)]
        if start:
            origin = total[..., start : start + 1, :]
            later = q[..., own, :] * (total[..., own, :] - origin).exp()
            earlier = k[..., :start, :] * (origin - total[..., :start, :]).exp()
            parts.insert(0, later @ earlier.transpose(-1, -2))
        rows.append(torch.cat(parts, dim=-1))
    return torch.cat(rows, dim=-2)
