"""The gated delta rule: all of the state fades, and what a key recalls is overwritten.

Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule",
arXiv:2412.06464, equation 10 and section 3.3:

    S_t = alpha_t S_{t-1} + k_t u_t^T,    u_t = beta_t (v_t - alpha_t S_{t-1}^T k_t)
    o_t = S_t^T q_t

| paper | here |
|---|---|
| S_t (transposed) | `state`, `(batch, heads, key_dim, value_dim)`, fp32 |
| alpha_t = exp(-A softplus(W_a x + bias)) | `exp(log_decay)`, `(batch, heads, n)`: as Mamba-2's |
| beta_t = sigmoid(W_b x) | `strength`, the same shape |
| gamma_t | exp of the running sum of `log_decay` within a chunk |
| Gamma_ij = gamma_i / gamma_j | `between`, exp of a difference that is never positive |

In chunks, with D = diag(gamma) and C = gamma of the chunk's last token:

    (I + tril(diag(beta) (Gamma o K K^T), -1)) U = diag(beta) (V - D K S)
    O = D Q S + (Gamma o Q K^T) U        S <- C S + (C D^-1 K)^T U

Without decay this is the delta rule. Running sums are in fp64, since strong decays earlier in the
chunk would drown the differences in fp32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.attention.delta_rule import unit
from worthit.nn.attention.linear_attention import LinearMixer, in_chunks
from worthit.nn.cache import StateCache
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

# The decay rates of a fresh layer are uniform within these (the authors' code).
A_MIN, A_MAX = 0.01, 16.0


class GatedDeltaRule(LinearMixer):
    """The rule: fade, then overwrite what the key recalls. Qwen3-Next's linear layers."""

    def __init__(self, attention: spec.LinearAttention, model: spec.ModelSpec) -> None:
        super().__init__(attention, model)
        heads = attention.n_value_heads
        self.strength_proj = nn.Linear(model.d_model, heads, bias=False)
        self.step_proj = nn.Linear(model.d_model, heads, bias=False)
        self.step_bias = nn.Parameter(torch.ones(heads))
        self.log_a = nn.Parameter(torch.empty(heads).uniform_(A_MIN, A_MAX).log())

    def recall(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        x: Tensor,
        tokens: Tokens,
        cache: StateCache | None,
    ) -> Tensor:
        """`S^T q`."""
        q, k = unit(q) / math.sqrt(self.spec.key_dim), unit(k)
        step = functional.softplus(self.step_proj(x).to(v.dtype) + self.step_bias.to(v.dtype))
        log_decay = -self.log_a.to(v.dtype).exp() * step
        out, state = gated_delta_rule(
            self.repeated(q),
            self.repeated(k),
            v,
            log_decay.transpose(1, 2),
            torch.sigmoid(self.strength_proj(x)).to(v.dtype).transpose(1, 2),
            None if cache is None else cache.get("state"),
            chunk=self.spec.chunk,
        )
        if cache is not None:
            cache["state"] = state
        return out


def gated_delta_rule_in_order(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    strength: Tensor,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs and the last state, token by token: the reference. Shapes as below."""
    if state is None:
        state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    out = []
    for t in range(q.shape[2]):
        state = log_decay[:, :, t, None, None].exp() * state
        recalled = (k[:, :, t, None, :] @ state)[:, :, 0]
        added = strength[:, :, t, None] * (v[:, :, t] - recalled)
        state = state + k[:, :, t, :, None] * added[:, :, None, :]
        out.append((q[:, :, t, None, :] @ state)[:, :, 0])
    return torch.stack(out, dim=2), state


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    strength: Tensor,
    state: Tensor | None = None,
    *,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Outputs `(batch, heads, n, value_dim)` and the last state, in chunks.

    Args:
        q, k: `(batch, heads, n, key_dim)`.
        v: `(batch, heads, n, value_dim)`.
        log_decay: log alpha, `(batch, heads, n)`, not positive.
        strength: beta, the same shape.
        state: `(batch, heads, key_dim, value_dim)`; zeros where None.
    """
    n = q.shape[2]
    if n == 1:
        return gated_delta_rule_in_order(q, k, v, log_decay, strength, state)
    size = min(chunk, n)
    q, k, v, beta = (in_chunks(t, size) for t in (q, k, v, strength[..., None]))
    total = in_chunks(log_decay[..., None].double(), size).cumsum(dim=3)
    is_future = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)
    between = (total - total.transpose(-1, -2)).to(q.dtype).masked_fill(is_future, -math.inf).exp()
    from_start, to_end = total.to(q.dtype).exp(), (total[..., -1:, :] - total).to(q.dtype).exp()

    system = beta * between * (k @ k.transpose(-1, -2))
    scores = between * (q @ k.transpose(-1, -2))
    # Solved for diag(beta) V and diag(beta) D K at once; the diagonal is taken to be 1.
    solved = torch.linalg.solve_triangular(
        system, beta * torch.cat([v, from_start * k], dim=-1), upper=False, unitriangular=True
    )
    values, keys = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    if state is None:
        state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    out = []
    parts = (from_start * q, to_end * k, values, keys, scores, from_start[..., -1:, :])
    for q_c, k_c, values_c, keys_c, scores_c, kept in zip(
        *(t.unbind(2) for t in parts), strict=True
    ):
        added = values_c - keys_c @ state
        out.append(q_c @ state + scores_c @ added)
        state = kept * state + k_c.transpose(-1, -2) @ added
    return torch.cat(out, dim=2)[:, :, :n], state
