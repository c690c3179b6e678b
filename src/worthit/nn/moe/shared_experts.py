"""Shared experts: what every token needs stands beside the routed experts and is always on.

Dai et al. 2024, "DeepSeekMoE: Towards Ultimate Expert Specialization in Mixture-of-Experts Language
Models", arXiv:2401.06066, equation 9:

    h_t = sum_{i <= K_s} FFN_i(u_t) + sum_{i > K_s} g_{i,t} FFN_i(u_t) + u_t

| paper | here |
|---|---|
| K_s shared experts | `n_shared_experts`, one `FeedForward` of their joint width `shared.d_ff` |

K_s feed-forwards added up are one of K_s times the width: they are stored as that. Qwen2-MoE
weights the shared expert by a sigmoid gate of its own (`has_shared_gate`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worthit.nn.ffn import FeedForward
from worthit.spec import model as spec


class SharedExperts(nn.Module):
    """The experts that every token passes, gated by one number a token where there is a gate."""

    def __init__(self, moe: spec.MoE, model: spec.ModelSpec) -> None:
        super().__init__()
        assert moe.shared is not None
        self.ffn = FeedForward(moe.shared, model)
        self.gate = nn.Linear(model.d_model, 1, bias=False) if moe.has_shared_gate else None

    def forward(self, x: Tensor) -> Tensor:
        """`(..., d_model)` to the same shape."""
        y: Tensor = self.ffn(x)
        return y if self.gate is None else torch.sigmoid(self.gate(x)) * y
