"""Multi-head attention: every head has queries, keys and values of its own.

Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762, section 3.2:

    head_i = softmax(Q W_i^Q (K W_i^K)^T / sqrt(d_k)) V W_i^V        out = concat(head_i) W^O

| paper | here |
|---|---|
| h, d_k = d_v | `n_heads`, `head_dim` |
| W^Q, W^K, W^V of all heads | `q_proj`, `k_proj`, `v_proj`, head by head |
| W^O | `o_proj` |

It is grouped-query attention with groups of one; `attend_head` is the formula, for one head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.spec import model as spec


def attend_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One causal head: `(n, d)`, `(n, d)` and `(n, d_v)` to `(n, d_v)`."""
    scores = q @ k.T / math.sqrt(q.shape[-1])
    ahead = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(ahead, -math.inf).softmax(dim=-1) @ v


class MultiHeadAttention(GroupedQueryAttention):
    """Softmax attention with a key/value head for each query head."""

    def __init__(self, attention: spec.Attention, model: spec.ModelSpec) -> None:
        assert attention.n_kv_heads == attention.n_heads, "a key/value head for each query head"
        super().__init__(attention, model)
