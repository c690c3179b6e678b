"""Expert choice: each expert takes the tokens that it scores highest, and all take as many.

Zhou et al. 2022, "Mixture-of-Experts with Expert Choice Routing", arXiv:2202.09368, section 3.2:

    S = softmax(X W_g)        G, I = TopK(S^T, k)        k = n c / e

| paper | here |
|---|---|
| n tokens | the real tokens of one row of the batch |
| e experts | `n_experts` |
| c, average experts a token | `n_experts_per_token` |
| k, tokens an expert | `capacity` |
| G | the weights of the pairs |

Balance is exact, and nobody pays for it with a loss. The price is order: whether a token is among
an expert's best depends on the tokens *after* it. Training looks ahead a little, and text cannot be
generated this way. Passes that continue a cache therefore let each token choose its own c experts
by the same scores: an approximation, which nothing makes exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worthit.nn.moe.topk_moe import Pairs, Routing, TopKMoE, real
from worthit.nn.tokens import Tokens


class ExpertChoice(TopKMoE):
    """Experts that choose their tokens, sequence by sequence."""

    # A choice depends on the other tokens of its sequence.
    looks_around = True

    def pairs(self, routing: Routing, shape: torch.Size, tokens: Tokens | None) -> Pairs:
        """Each expert's best tokens of each row; each token's experts after a past."""
        if tokens is not None and tokens.past:
            return super().pairs(routing, shape, tokens)
        moe = self.spec
        is_real = real(shape, tokens, routing.chosen.device)
        batch, n = shape
        scores = routing.scores.view(batch, n, moe.n_experts)
        preference = scores.detach().masked_fill(~is_real[..., None], float("-inf"))
        room = capacity(is_real.sum(dim=1), moe.n_experts, moe.n_experts_per_token)
        order = preference.argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1)  # (batch, n, n_experts), 0 is an expert's favourite
        rows, places, experts = ((rank < room[:, None, None]) & is_real[..., None]).nonzero(
            as_tuple=True
        )
        weights = scores[rows, places, experts] * moe.weight_scale
        return Pairs(rows * n + places, experts, weights)


def capacity(n_tokens: Tensor, n_experts: int, per_token: int) -> Tensor:
    """Tokens that each expert takes of each row: n c / e, rounded down, at least one."""
    return torch.clamp(n_tokens * per_token // n_experts, min=1)
