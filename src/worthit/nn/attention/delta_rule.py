"""The delta rule: before a value is stored, what its key recalls is taken away.

Schlag et al. 2021, "Linear Transformers Are Secretly Fast Weight Programmers", arXiv:2102.11174,
equations 23-25; in chunks by Yang et al. 2024, "Parallelizing Linear Transformers with the Delta
Rule over Sequence Length", arXiv:2406.06484, section 3:

    S_t = S_{t-1} + k_t u_t^T,    u_t = beta_t (v_t - S_{t-1}^T k_t)        o_t = S_t^T q_t

| paper | here |
|---|---|
| S_t (transposed) | `state`, `(batch, heads, key_dim, value_dim)`, fp32 |
| beta_t | `strength` `(batch, heads, n)`: the share of the old value that is overwritten |
| u_t | the pseudo-values: what is really added |
| T = (I + tril(diag(beta) K K^T, -1))^-1 diag(beta) | solved for, never inverted |

Within a chunk that starts from S, the pseudo-values depend on one another through earlier keys:

    (I + tril(diag(beta) K K^T, -1)) U = diag(beta) (V - K S)

which is one triangular system for both right sides, V and K; the rest is attention without a
softmax. Keys and queries have unit norm, so that beta = 1 replaces exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from worthit.nn.attention.linear_attention import LinearMixer, in_chunks
from worthit.nn.cache import StateCache
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

# Added to the squared length of queries and keys.
UNIT_EPS = 1e-6


class DeltaRule(LinearMixer):
    """The rule: overwrite what the key recalls."""

    def __init__(self, attention: spec.LinearAttention, model: spec.ModelSpec) -> None:
        super().__init__(attention, model)
        self.strength_proj = nn.Linear(model.d_model, attention.n_value_heads, bias=False)

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
        out, state = delta_rule(
            self.repeated(q),
            self.repeated(k),
            v,
            torch.sigmoid(self.strength_proj(x)).to(v.dtype).transpose(1, 2),
            None if cache is None else cache.get("state"),
            chunk=self.spec.chunk,
        )
        if cache is not None:
            cache["state"] = state
        return out


def unit(x: Tensor) -> Tensor:
    """`x` over its length; zeros stay zeros."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + UNIT_EPS)


def delta_rule_in_order(
    q: Tensor, k: Tensor, v: Tensor, strength: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs and the last state, token by token: the reference. Shapes as in `delta_rule`."""
    if state is None:
        state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    out = []
    for t in range(q.shape[2]):
        recalled = (k[:, :, t, None, :] @ state)[:, :, 0]
        added = strength[:, :, t, None] * (v[:, :, t] - recalled)
        state = state + k[:, :, t, :, None] * added[:, :, None, :]
        out.append((q[:, :, t, None, :] @ state)[:, :, 0])
    return torch.stack(out, dim=2), state


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    strength: Tensor,
    state: Tensor | None = None,
    *,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Outputs `(batch, heads, n, value_dim)` and the last state, in chunks.

    Args:
        q, k: `(batch, heads, n, key_dim)`.
        v: `(batch, heads, n, value_dim)`.
        strength: beta, `(batch, heads, n)`.
        state: `(batch, heads, key_dim, value_dim)`; zeros where None.
    """
    n = q.shape[2]
    if n == 1:
        return delta_rule_in_order(q, k, v, strength, state)
    q, k, v, beta = (in_chunks(t, min(chunk, n)) for t in (q, k, v, strength[..., None]))
    system = beta * (k @ k.transpose(-1, -2))
    scores = (q @ k.transpose(-1, -2)).tril()
    # Solved for diag(beta) V and diag(beta) K at once; the diagonal is taken to be 1.
    solved = torch.linalg.solve_triangular(
        system, beta * torch.cat([v, k], dim=-1), upper=False, unitriangular=True
    )
    values, keys = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    if state is None:
        state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    out = []
    for q_c, k_c, values_c, keys_c, scores_c in zip(
        *(t.unbind(2) for t in (q, k, values, keys, scores)), strict=True
    ):
        added = values_c - keys_c @ state
        out.append(q_c @ state + scores_c @ added)
        state = state + k_c.transpose(-1, -2) @ added
    return torch.cat(out, dim=2)[:, :, :n], state
