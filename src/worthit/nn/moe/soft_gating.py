"""Soft gating: every expert answers every token, and a gate says how much each counts.

Jacobs, Jordan, Nowlan & Hinton 1991, "Adaptive Mixtures of Local Experts", Neural Computation 3(1),
79-87: the output is the gate's mean of the experts',

    y = sum_i p_i o_i        p_i = exp(x_i) / sum_j exp(x_j)

| paper | here |
|---|---|
| o_i, expert i's output | `Experts.expert(i, x)` |
| x_i, the gating network's outputs | `logits` |
| p_i | `scores` |

The paper trains each expert towards the target by itself (equation 1.3); inside a network there is
no target, and the mean's own gradient trains gate and experts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from worthit.nn.ffn import activate
from worthit.nn.moe.topk_moe import Routing, TopKMoE
from worthit.nn.tokens import Tokens


class SoftGating(TopKMoE):
    """All experts, weighted by the softmax of the gate."""

    def routed(
        self, h: Tensor, routing: Routing, shape: torch.Size, tokens: Tokens | None
    ) -> Tensor:
        """All experts at once: each matrix product covers every expert.

        The gate weighs what goes into `down`, which is linear, and one product sums over experts.
        """
        e, gates = self.experts, routing.scores.to(h.dtype)[..., None]  # (n, n_experts, 1)
        inner = functional.linear(h, e.up.flatten(0, 1)).unflatten(-1, (e.n_experts, -1))
        if e.up_bias is not None:
            inner = inner + e.up_bias
        inner = activate(e.spec, inner) * gates  # (n, n_experts, d_ff)
        y = torch.einsum("nef,edf->nd", inner, e.down)
        if e.down_bias is not None:
            y = y + gates[..., 0] @ e.down_bias
        return y if e.spec.out_scale == 1.0 else y * e.spec.out_scale
