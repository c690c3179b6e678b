"""Switch: one expert a token, and experts that take no more than their capacity.

Fedus, Zoph & Shazeer 2021, "Switch Transformers: Scaling to Trillion Parameter Models with Simple
and Efficient Sparsity", arXiv:2101.03961, equations 1 to 3:

    y = p_i(x) E_i(x), i = argmax p        capacity = tokens / experts * capacity factor

| paper | here |
|---|---|
| p_i(x) | `scores` |
| N experts | `n_experts` |
| T tokens | the real tokens of one row of the batch |
| expert capacity | `capacity` |

Tokens queue for their expert in order of position; those behind its capacity are dropped: they get
nothing from it and go on through the residual connection. With k > 1 all first choices stand
before all second ones (GShard, Lepikhin et al. 2020, arXiv:2006.16668, algorithm 1). The loss that
balances the experts (equations 4 to 6) stands in `balance.py`.

A token's fate depends on the tokens before it. One pass and a prefill with single tokens agree only
as long as nobody is dropped: a single token never is. In training the router's input is jittered
(section 2.4).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.moe.topk_moe import Pairs, Router, Routing, TopKMoE, real
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

JITTER = 1e-2
# Section 2.4: matrices start at a tenth of the usual variance.
INIT_SCALE = 0.1


class JitteredRouter(Router):
    """A router that sees its input multiplied by noise within 1 +- `JITTER` while it is trained."""

    def logits(self, x: Tensor) -> Tensor:
        """`(n, n_experts)` in fp32."""
        if self.training:
            x = x.float() * torch.empty_like(x, dtype=torch.float32).uniform_(
                1 - JITTER, 1 + JITTER
            )
        return super().logits(x)


class Switch(TopKMoE):
    """Experts with a capacity, in order of position."""

    # A choice depends on the other tokens of its sequence.
    looks_around = True

    router_class = JitteredRouter

    def __init__(self, moe: spec.MoE, model: spec.ModelSpec) -> None:
        super().__init__(moe, model)
        for weight in (self.experts.up, self.experts.down, self.router.linear.weight):
            std = (INIT_SCALE / weight.shape[-1]) ** 0.5
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)

    def pairs(self, routing: Routing, shape: torch.Size, tokens: Tokens | None) -> Pairs:
        """The pairs of token and expert that find room."""
        moe = self.spec
        assert moe.capacity_factor is not None
        is_real = real(shape, tokens, routing.chosen.device)
        batch, n = shape
        k = routing.chosen.shape[-1]
        # (batch, k * n): every token's first choice, then every token's second.
        wanted = routing.chosen.view(batch, n, k).transpose(1, 2).flatten(1)
        counts = functional.one_hot(wanted, moe.n_experts) * is_real.repeat(1, k)[..., None]
        place = (counts.cumsum(dim=1) * counts).sum(dim=-1)  # 1 is first; 0 is padding
        room = capacity(is_real.sum(dim=1, keepdim=True), moe.n_experts, moe.capacity_factor, k=k)
        finds_room = ((place > 0) & (place <= room)).view(batch, k, n).transpose(1, 2).flatten(0, 1)
        rows, choice = finds_room.nonzero(as_tuple=True)
        return Pairs(rows, routing.chosen[rows, choice], routing.weights[rows, choice])


def capacity(n_tokens: Tensor, n_experts: int, capacity_factor: float, *, k: int = 1) -> Tensor:
    """Tokens that one expert takes of `n_tokens`, equation 3, rounded up; at least one."""
    return (n_tokens * k / n_experts * capacity_factor).ceil().clamp_min(1)
