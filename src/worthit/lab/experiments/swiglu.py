"""Three matrices, one gating another, against two of the same size in all: loss on text."""

from __future__ import annotations

from worthit.lab import models
from worthit.lab.claims import superior
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment
from worthit.lab.experiments._text import BUDGETS, LOSS, ON_TEXT, SAME_SIZE, unseen
from worthit.lab.metrics import PARAMETERS, STEP_SECONDS
from worthit.spec.model import FeedForward, ModelSpec
from worthit.techniques.norm._parts import SHAZEER_2020


def plain(budget: Budget) -> ModelSpec:
    """Two matrices and GELU, four times as wide inside."""
    d = budget.sizes["d_model"]
    return models.decoder(d, ffn=FeedForward(d_ff=4 * d, is_gated=False, activation="gelu"))


def gated(budget: Budget) -> ModelSpec:
    """Three matrices of two thirds of that width."""
    d = budget.sizes["d_model"]
    return models.decoder(d, ffn=FeedForward(d_ff=8 * d // 3, is_gated=True, activation="silu"))


EXPERIMENT = Experiment(
    id="swiglu",
    technique="swiglu",
    question="Does a gated feed-forward of the same size reach a lower loss than GELU?",
    expectation=Expectation(
        statement="A lower loss at equal parameters and compute: a T5's log-perplexity falls from "
        "1.679 to 1.636.",
        source=SHAZEER_2020,
        refuted_if="the loss is not lower with the gate",
        worth_it=True,
    ),
    how=ON_TEXT,
    matched=SAME_SIZE,
    arms=(
        Arm(id="gelu", label="GELU", model=plain),
        Arm(id="swiglu", label="SwiGLU", model=gated),
    ),
    metrics=(LOSS, STEP_SECONDS, PARAMETERS),
    claims=(superior(LOSS, "swiglu", by=0.0),),
    budgets=BUDGETS,
    predicted=unseen,
    means={
        "confirmed": "The gate lowers the loss at equal size: free where a model is trained.",
        "refuted": "At this size and in so few steps the gate buys nothing: a gain of hundredths "
        "takes longer training to show.",
    },
)
