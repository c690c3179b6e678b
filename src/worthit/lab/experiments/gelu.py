"""A smooth curve against a bent one: loss on text at equal size."""

from __future__ import annotations

from worthit.lab import models
from worthit.lab.claims import same
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment
from worthit.lab.experiments._text import BUDGETS, LOSS, ON_TEXT, SAME_SIZE, unseen
from worthit.lab.metrics import PARAMETERS, STEP_SECONDS
from worthit.spec.model import Activation, FeedForward, ModelSpec
from worthit.techniques.norm._parts import SHAZEER_2020


def with_activation(activation: Activation, budget: Budget) -> ModelSpec:
    """Two matrices, four times as wide inside."""
    d = budget.sizes["d_model"]
    return models.decoder(d, ffn=FeedForward(d_ff=4 * d, is_gated=False, activation=activation))


EXPERIMENT = Experiment(
    id="gelu",
    technique="gelu",
    question="Does GELU reach a lower loss than ReLU?",
    expectation=Expectation(
        statement="No difference that matters: a T5's log-perplexity is 1.679 with GELU and 1.677 "
        "with ReLU.",
        source=SHAZEER_2020,
        refuted_if="the losses differ by 0.05 nats or more",
        worth_it=False,
    ),
    how=ON_TEXT,
    matched=SAME_SIZE,
    arms=(
        Arm(id="relu", label="ReLU", model=lambda budget: with_activation("relu", budget)),
        Arm(id="gelu", label="GELU", model=lambda budget: with_activation("gelu", budget)),
    ),
    metrics=(LOSS, STEP_SECONDS, PARAMETERS),
    claims=(same(LOSS, "gelu"),),
    budgets=BUDGETS,
    predicted=unseen,
    means={
        "confirmed": "Either will do: what is worth changing for is a gate.",
        "refuted": "Here the two differ by more than in the claim, whose model is a thousand times "
        "as large and trained far longer: small networks feel their activation more.",
    },
)
