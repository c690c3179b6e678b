"""Top-k mixture of experts: each token goes to the few experts that its router scores highest.

Shazeer et al. 2017, "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts
Layer", arXiv:1701.06538, equations 1 and 3:

    y = sum_{i in topk} G(x)_i E_i(x)        G(x) = softmax(KeepTopK(x W_g, k))

| paper | here |
|---|---|
| n experts E_i | `n_experts`, `Experts` |
| k | `n_experts_per_token` |
| x W_g | `logits` |
| G(x)_i | `weights` |

Softmax over the k chosen logits is softmax over all, divided by the sum of the chosen
(`has_normalised_weights`). Without the division the weights are plain probabilities (OLMoE, Jamba).
DeepSeek-V3 (arXiv:2412.19437, equations 12 to 16) scores by sigmoid, adds a bias to the scores in
the *selection* only, and chooses among the experts of the best groups. Nobody is dropped: every
token gets its k experts, however many others want the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.moe.experts import Experts
from worthit.nn.moe.shared_experts import SharedExperts
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

# Keeps the division finite where all chosen sigmoids underflow (DeepSeek-V3's own).
TINY = 1e-20


@dataclass(frozen=True)
class Routing:
    """What a router decided about `n` tokens, all in fp32.

    Attributes:
        logits: `(n, n_experts)`.
        scores: `(n, n_experts)`, softmax or sigmoid of the logits.
        chosen: `(n, k)`, indices of experts.
        weights: `(n, k)`, what the chosen experts' outputs are multiplied by.
    """

    logits: Tensor
    scores: Tensor
    chosen: Tensor
    weights: Tensor

    @property
    def load(self) -> Tensor:
        """Tokens that each expert got, `(n_experts,)`."""
        return torch.bincount(self.chosen.flatten(), minlength=self.logits.shape[-1])


class Router(nn.Module):
    """Scores every expert for every token and chooses `n_experts_per_token`."""

    weights_read = ("linear",)  # in fp32, whatever it is stored in

    def __init__(self, moe: spec.MoE, d_model: int) -> None:
        super().__init__()
        self.spec = moe
        self.linear = nn.Linear(d_model, moe.n_experts, bias=moe.has_router_bias)
        # A buffer, not a parameter: no gradient reaches it (see aux_free_balancing).
        self.selection_bias: Tensor | None
        bias = torch.zeros(moe.n_experts) if moe.balance == "bias" else None
        self.register_buffer("selection_bias", bias)

    def forward(self, x: Tensor) -> Routing:
        """Route `x` `(n, d_model)`."""
        moe = self.spec
        logits = self.logits(x)
        scores = logits.sigmoid() if moe.score == "sigmoid" else logits.softmax(dim=-1)
        preference = scores if self.selection_bias is None else scores + self.selection_bias
        if moe.n_groups > 1:
            preference = self.within_best_groups(preference)
        chosen = preference.topk(moe.n_experts_per_token, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if moe.has_normalised_weights:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + TINY)
        return Routing(logits, scores, chosen, weights * moe.weight_scale)

    def logits(self, x: Tensor) -> Tensor:
        """`(n, n_experts)` in fp32, whatever the precision around it."""
        weight, bias = self.linear.weight, self.linear.bias
        return functional.linear(x.float(), weight.float(), None if bias is None else bias.float())

    def within_best_groups(self, preference: Tensor) -> Tensor:
        """`preference` `(n, n_experts)` with -inf outside each token's best groups."""
        moe = self.spec
        grouped = preference.unflatten(-1, (moe.n_groups, -1))  # (n, n_groups, experts each)
        group_scores = grouped.topk(moe.n_group_scores, dim=-1).values.sum(dim=-1)
        best = group_scores.topk(moe.n_groups_per_token, dim=-1).indices
        is_out = torch.ones_like(group_scores, dtype=torch.bool).scatter(-1, best, False)
        return grouped.masked_fill(is_out[..., None], float("-inf")).flatten(-2)


@dataclass(frozen=True)
class Pairs:
    """Who goes where: token `tokens[j]` to expert `experts[j]`, counted with `weights[j]`."""

    tokens: Tensor
    experts: Tensor
    weights: Tensor


class TopKMoE(nn.Module):
    """Router, routed experts and, where the model has them, shared experts and a latent width."""

    router_class = Router

    def __init__(self, moe: spec.MoE, model: spec.ModelSpec) -> None:
        super().__init__()
        self.spec = moe
        d, width = model.d_model, moe.d_latent or model.d_model
        self.router = self.router_class(moe, d)
        self.experts = Experts(moe.expert, moe.n_experts, width)
        self.shared = None if moe.shared is None else SharedExperts(moe, model)
        self.latent_in = self.latent_out = None
        if moe.d_latent is not None:
            self.latent_in = nn.Linear(d, width, bias=moe.has_latent_bias)
            self.latent_out = nn.Linear(width, d, bias=moe.has_latent_bias)

    def forward(self, x: Tensor, tokens: Tokens | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape.

        `tokens` says which are real, where a choice depends on others' (capacity, expert choice).
        """
        rows = x.flatten(0, -2)
        routing = self.router(rows)
        h = rows if self.latent_in is None else self.latent_in(rows)
        y = self.routed(h, routing, x.shape[:-1], tokens)
        y = y if self.latent_out is None else self.latent_out(y)
        if self.shared is not None:
            y = y + self.shared(rows)
        return y.view_as(x)

    def routed(
        self, h: Tensor, routing: Routing, shape: torch.Size, tokens: Tokens | None
    ) -> Tensor:
        """The weighted sum of experts for `h` `(batch * n, width)`; `shape` is `(batch, n)`."""
        p = self.pairs(routing, shape, tokens)
        return self.experts(h, p.tokens, p.experts, p.weights, scales_input=self.spec.scales_input)

    def pairs(self, routing: Routing, shape: torch.Size, tokens: Tokens | None) -> Pairs:
        """Every token with each expert that it chose."""
        n, k = routing.chosen.shape
        each = torch.arange(n, device=routing.chosen.device).repeat_interleave(k)
        return Pairs(each, routing.chosen.flatten(), routing.weights.flatten())


def real(shape: torch.Size, tokens: Tokens | None, device: torch.device) -> Tensor:
    """`(batch, n)` booleans: which tokens of the pass are no padding."""
    known = None if tokens is None else tokens.is_new_real
    everyone = torch.ones(shape, dtype=torch.bool, device=device)
    return everyone if known is None else known


def build_moe(moe: spec.MoE, model: spec.ModelSpec) -> TopKMoE:
    """The mixture that `moe` describes, by who chooses whom."""
    if moe.routing == "soft":
        from worthit.nn.moe.soft_gating import SoftGating

        return SoftGating(moe, model)
    if moe.routing == "expert-choice":
        from worthit.nn.moe.expert_choice import ExpertChoice

        return ExpertChoice(moe, model)
    if moe.capacity_factor is not None:
        from worthit.nn.moe.switch import Switch

        return Switch(moe, model)
    return TopKMoE(moe, model)
