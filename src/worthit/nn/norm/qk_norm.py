"""QK-norm: normalise queries and keys, so that no score can run away.

Henry et al. 2020, "Query-Key Normalization for Transformers", arXiv:2010.04245; as an RMS or layer
norm with learned weights in Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion
Parameters", arXiv:2302.05442, section 2:

    score(i, j) = N(q_i) N(k_j) / sqrt(head_dim)

| paper | here |
|---|---|
| LN(X W_Q), LN(X W_K) | `query`, `key`: norms of the layer's own kind |

Models differ in what one norm spans: each head with one weight vector for all (`head`, Qwen3), the
whole projection (`full`, OLMo 2), each head with its own weights (`per-head`, StableLM, Cohere), or
each head without weights (`no-weight`, Llama 4).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from worthit.nn.norm import norm_for
from worthit.spec import model as spec


class QKNorm(nn.Module):
    """The two norms of an attention: over `(batch, n, heads * head_dim)` when `full`, else over
    `(batch, heads, n, head_dim)`."""

    def __init__(self, attention: spec.Attention, model: spec.ModelSpec) -> None:
        super().__init__()
        a = attention
        norm = replace(
            model.layers[0].norm, has_bias=a.has_qk_norm_bias, has_weight=a.qk_norm != "no-weight"
        )

        def over(n_heads: int) -> nn.Module:
            if a.qk_norm == "per-head":
                return PerHeadNorm(norm, n_heads, a.head_dim)
            return norm_for(norm, a.head_dim * (n_heads if a.qk_norm == "full" else 1))

        self.query, self.key = over(a.n_heads), over(a.n_kv_heads)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys, normalised."""
        return self.query(q), self.key(k)


class PerHeadNorm(nn.Module):
    """A norm over each head with weights of its own: `(batch, heads, n, head_dim)`."""

    def __init__(self, norm: spec.Norm, n_heads: int, head_dim: int) -> None:
        super().__init__()
        self.normalise = norm_for(replace(norm, has_weight=False, has_bias=False), head_dim)
        self.weight = nn.Parameter(torch.ones(n_heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(n_heads, head_dim)) if norm.has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every head, then weigh it."""
        y: Tensor = self.normalise(x) * self.weight[None, :, None, :]
        return y if self.bias is None else y + self.bias[None, :, None, :]
