"""Dividing by the root mean square alone, against centring as well: loss on text."""

from __future__ import annotations

from dataclasses import replace

from worthit.lab import models
from worthit.lab.claims import no_worse, ratio_between
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Matched
from worthit.lab.experiments._text import BUDGETS, LOSS, ON_TEXT, unseen
from worthit.lab.metrics import PARAMETERS, STEP_SECONDS
from worthit.spec.model import ModelSpec, Norm
from worthit.techniques.norm.rmsnorm import ZHANG_2019


def normalised(norm: Norm, budget: Budget) -> ModelSpec:
    """The small decoder with norms of one kind."""
    return models.decoder(budget.sizes["d_model"], norm=norm)


EXPERIMENT = Experiment(
    id="rmsnorm",
    technique="rmsnorm",
    question="Does leaving out the centring cost anything?",
    expectation=Expectation(
        statement="Quality on a par with LayerNorm, in less time where norms are not fused.",
        source=replace(ZHANG_2019, where="abstract"),
        refuted_if="the loss is 0.05 nats worse",
        worth_it=True,
    ),
    how=ON_TEXT,
    matched=Matched(what=("parameters", "FLOPs", "tokens"), because="the biases alone go"),
    arms=(
        Arm(
            id="layernorm",
            label="LayerNorm",
            model=lambda budget: normalised(Norm(kind="layernorm", has_bias=True), budget),
        ),
        Arm(
            id="rmsnorm",
            label="RMSNorm",
            model=lambda budget: normalised(Norm(kind="rmsnorm"), budget),
        ),
    ),
    metrics=(LOSS, STEP_SECONDS, PARAMETERS),
    claims=(no_worse(LOSS, "rmsnorm"), ratio_between(PARAMETERS, "rmsnorm", 0.0, 1.0)),
    budgets=BUDGETS,
    predicted=unseen,
    means={
        "confirmed": "Centring is not what a norm is for: RMSNorm is one reduction less, for free.",
        "refuted": "Centring helps this model: with so few channels their mean is not near zero.",
    },
)
