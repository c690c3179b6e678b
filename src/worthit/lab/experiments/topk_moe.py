"""Two experts in place of the tutor's feed-forward, as many parameters active a token.

The grammar tutor is bound by nothing that a mixture relieves: its 500k parameters cost nothing to
read or to multiply, and twice the feed-forward is not what 600 verb forms lack.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from worthit.lab import models, predict
from worthit.lab.claims import Metric, at_most, not_better
from worthit.lab.context import Setting
from worthit.lab.experiment import (
    Arm,
    Budget,
    Expectation,
    Experiment,
    Matched,
    Measures,
    Prediction,
    Trial,
)
from worthit.lab.experiments._tutor import BUDGETS, EXACT_MATCH, EXPECTED, ON_TUTOR
from worthit.lab.metrics import LOSS, PARAMETERS, STEP_SECONDS
from worthit.nn.moe.balance import load_balance_loss, load_of, max_violation, routings
from worthit.spec.model import FeedForward, ModelSpec, MoE
from worthit.train import Batch, next_token_loss

# Fedus et al. 2021, section 2.2, use 0.01.
BALANCE_WEIGHT = 0.01
IMBALANCE = Metric(id="imbalance", name="busiest expert over its share", margin=0.1)


def two_experts(budget: Budget) -> ModelSpec:
    """The tutor with two copies of its feed-forward, one of them a token.

    With one expert a token its weight is its probability: divided by itself it would be 1, and the
    router would learn nothing.
    """

    def split(ffn: object) -> MoE:
        assert isinstance(ffn, FeedForward)
        return MoE(n_experts=2, n_experts_per_token=1, expert=ffn, has_normalised_weights=False)

    return models.tutor(budget).map_ffns(split)


def balanced_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy, and the loss that keeps both experts busy."""
    with routings(model) as seen:
        loss = next_token_loss(model, batch)
    return loss + BALANCE_WEIGHT * sum(load_balance_loss(routing) for routing in seen)


def balance(trial: Trial) -> Measures:
    """How unevenly the test tokens went to the experts."""
    if trial.arm.id == "dense":
        return {}
    with torch.no_grad(), routings(trial.model) as seen:
        for batch in trial.data.held_out("test"):
            trial.model(batch.input_ids)
    return {"imbalance": max_violation(load_of(seen))}


def predicted(setting: Setting) -> list[Prediction]:
    """Memory and time; what experts learn cost cannot see."""
    return [
        *predict.unseen(setting, "exact_match", "loss"),
        *predict.counted(setting, "parameters", "parameters"),
        *predict.train_time(setting, "step_s"),
    ]


EXPERIMENT = Experiment(
    id="topk-moe",
    technique="topk-moe",
    question="Do two experts beat one feed-forward on the grammar tutor, with as many parameters "
    "active?",
    expectation=Expectation(
        statement="Two experts converge and do not help: the tutor has none of the bottlenecks "
        "that a mixture relieves.",
        source=EXPECTED,
        refuted_if="exact match rises by 5 points or more with two experts",
        worth_it=False,
    ),
    how=replace(ON_TUTOR, score=balance),
    matched=Matched(
        what=("active parameters", "tokens"),
        because="each expert is a copy of the dense feed-forward and one runs a token; what is "
        "extra is the router, and the memory of the other expert",
    ),
    arms=(
        Arm(id="dense", label="dense", model=models.tutor),
        Arm(id="moe", label="two experts", model=two_experts, loss=balanced_loss),
    ),
    metrics=(EXACT_MATCH, LOSS, STEP_SECONDS, PARAMETERS, IMBALANCE),
    claims=(
        not_better(EXACT_MATCH, "moe"),
        at_most(IMBALANCE, "moe", 0.5),
    ),
    budgets=BUDGETS,
    predicted=predicted,
    means={
        "confirmed": "For 600 verb forms a second expert is memory and code without a gain: never.",
        "refuted": "The second expert is worth its memory here, against expectation: read the "
        "regular and irregular forms apart to see what it learned.",
    },
)
