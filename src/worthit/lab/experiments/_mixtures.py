"""What the experiments on mixtures share: a small decoder whose feed-forwards are experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from worthit.cost.params import count_params
from worthit.lab import models, predict
from worthit.lab.claims import Metric
from worthit.lab.context import Setting
from worthit.lab.experiment import Budget, Measures, Prediction, Trial
from worthit.nn.moe.balance import load_balance_loss, load_of, max_violation, routings
from worthit.nn.moe.topk_moe import Routing
from worthit.spec.model import FeedForward, ModelSpec, MoE
from worthit.train import Batch, next_token_loss

# Fedus et al. 2021, section 2.2.
BALANCE_WEIGHT = 0.01
N_EXPERTS = 8
IMBALANCE = Metric(id="imbalance", name="busiest expert over its share", margin=0.1)
ACTIVE = Metric(
    id="active", name="parameters a token uses", scale="ratio", margin=0.03, is_exact=True
)
SIZES = {"seq_len": 48, "d_model": 32, "windows": 48}
QUICK = Budget(
    n_seeds=4,
    n_steps=150,
    batch_size=16,
    learning_rates=(3e-3, 1e-2, 3e-2),
    n_tuning_steps=40,
    sizes=SIZES,
)
BUDGETS = {
    "smoke": Budget(
        n_seeds=2,
        n_steps=20,
        batch_size=8,
        learning_rates=(1e-2, 3e-2),
        n_tuning_steps=5,
        sizes=SIZES,
    ),
    "quick": QUICK,
    "full": Budget(
        n_seeds=8,
        n_steps=2000,
        batch_size=32,
        learning_rates=(1e-3, 3e-3, 1e-2, 3e-2),
        n_tuning_steps=600,
        sizes={"seq_len": 96, "d_model": 64, "windows": 128},
    ),
}


def mixture(budget: Budget, *, width: float = 1.0, **fields: Any) -> ModelSpec:
    """The small decoder with experts of `width` times its own in every layer."""
    d = budget.sizes["d_model"]
    expert = FeedForward(d_ff=round(width * d), is_gated=True)
    chosen = {"n_experts": N_EXPERTS, "n_experts_per_token": 2, "expert": expert, **fields}
    return models.decoder(d, ffn=MoE(**chosen))


def balanced(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy, and the loss that keeps the experts busy alike."""
    with routings(model) as seen:
        loss = next_token_loss(model, batch)
    return loss + BALANCE_WEIGHT * sum(load_balance_loss(routing) for routing in seen)


def routed(trial: Trial) -> list[list[Routing]]:
    """What each router of a trained model decides about the test split."""
    with torch.no_grad(), routings(trial.model) as seen:
        n_passes = 0
        for batch in trial.data.held_out("test"):
            trial.model(batch.input_ids)
            n_passes += 1
    n_routers = len(seen) // n_passes
    return [seen[i::n_routers] for i in range(n_routers)]


def imbalance(trial: Trial) -> Measures:
    """How far the busiest expert of any layer is over its share of the test tokens."""
    return {"imbalance": max(max_violation(load_of(each)) for each in routed(trial))}


def active(trial: Trial) -> Measures:
    """Parameters that a token uses."""
    return {"active": float(count_params(trial.model.spec).active)}


def unseen(setting: Setting) -> Iterator[Prediction]:
    """Neither what experts learn nor how evenly they are used is visible to cost."""
    yield from predict.unseen(setting, "loss", "imbalance")
