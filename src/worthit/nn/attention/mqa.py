"""Multi-query attention: all heads read the same keys and values.

Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need", arXiv:1911.02150,
section 3: as multi-head attention, but with one K and one V for all heads h,

    o_h = softmax(q_h K^T / sqrt(head_dim)) V

| paper | here |
|---|---|
| h | `n_heads` |
| P_q | `q_proj`, head by head |
| P_k, P_v (without a head dimension) | `k_proj`, `v_proj`: `head_dim` rows each |

It is grouped-query attention with one group. `merged` makes its keys and values from those of a
multi-head model, by the mean over heads, which uptraining starts from (Ainslie et al. 2023,
arXiv:2305.13245, section 2.1).
"""

from __future__ import annotations

from torch import Tensor

from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.spec import model as spec


class MultiQueryAttention(GroupedQueryAttention):
    """Softmax attention with one key/value head."""

    def __init__(self, attention: spec.Attention, model: spec.ModelSpec) -> None:
        assert attention.n_kv_heads == 1, "one key/value head"
        super().__init__(attention, model)


def merged(weight: Tensor, n_heads: int, n_kv_heads: int = 1) -> Tensor:
    """Rows of `k_proj` or `v_proj` `(n_heads * head_dim, d_model)` averaged over each group."""
    per_head = weight.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1))
    return per_head.mean(dim=1).flatten(0, 1)
