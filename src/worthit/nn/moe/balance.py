"""Keeping experts busy alike: losses, and what says how far from it a router is.

| | source | here |
|---|---|---|
| N sum_i f_i P_i | Fedus et al. 2021, arXiv:2101.03961, equations 4-6 | `load_balance_loss` |
| mean (log sum_i exp x_i)^2 | Zoph et al. 2022, arXiv:2202.08906, equation 5 | `router_z_loss` |
| MaxVio | Wang et al. 2024, arXiv:2408.15664, section 4.1 | `max_violation` |

f_i is the share of tokens that chose expert i, P_i the mean probability it was given. Where all
experts are chosen alike the loss is k, the experts a token: 1 in Switch, 2 in Mixtral.

    with routings(model) as seen:
        logits = model(input_ids)
    loss = cross_entropy(logits, targets) + 0.01 * sum(load_balance_loss(r) for r in seen)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from worthit.nn.moe.topk_moe import Router, Routing


@contextmanager
def routings(model: nn.Module) -> Iterator[list[Routing]]:
    """What every router of `model` decides inside the block, in the order of the passes."""
    seen: list[Routing] = []

    def note(module: nn.Module, inputs: object, routing: Routing) -> None:
        seen.append(routing)

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, Router)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def load_balance_loss(routing: Routing, is_real: Tensor | None = None) -> Tensor:
    """N sum_i f_i P_i: least, `k`, where every expert is chosen by as many and as surely.

    Sigmoid scores are divided by their sum first (DeepSeek-V3, arXiv:2412.19437, equation 19).

    Args:
        is_real: booleans, one a token in the order of the pass; padding does not count.
    """
    chosen, scores = routing.chosen, routing.scores
    if is_real is not None:
        chosen, scores = chosen[is_real.flatten()], scores[is_real.flatten()]
    n, n_experts = scores.shape
    probabilities = scores / scores.sum(dim=-1, keepdim=True)
    share = torch.bincount(chosen.flatten(), minlength=n_experts) / n
    return n_experts * (share * probabilities.mean(dim=0)).sum()


def router_z_loss(routing: Routing, is_real: Tensor | None = None) -> Tensor:
    """Mean of the squared log-partition: keeps logits small."""
    z = routing.logits.logsumexp(dim=-1)
    return (z if is_real is None else z[is_real.flatten()]).square().mean()


def max_violation(load: Tensor) -> float:
    """How far the busiest expert is over its share: (max load - mean) / mean; 0 is balance."""
    mean = load.float().mean()
    return float((load.max() - mean) / mean)


def load_of(seen: list[Routing]) -> Tensor:
    """Tokens that each expert got in all of `seen`, `(n_experts,)`: routings of one router."""
    return torch.stack([r.load for r in seen]).sum(dim=0)
