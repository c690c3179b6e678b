"""Many narrow experts beside one that always runs, against few wide ones of the same size."""

from __future__ import annotations

from worthit.lab.claims import superior
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Matched, Training
from worthit.lab.experiments._mixtures import ACTIVE, BUDGETS, active, balanced, mixture
from worthit.lab.experiments._text import LOSS, RECIPE, text
from worthit.lab.predict import unseen
from worthit.spec.model import FeedForward, ModelSpec
from worthit.techniques.moe._experts import DAI_2024


def wide(budget: Budget) -> ModelSpec:
    """Two of eight experts a token."""
    return mixture(budget, balance="none")


def narrow(budget: Budget) -> ModelSpec:
    """Three of fifteen half as wide, and one of that width for everybody."""
    shared = FeedForward(d_ff=budget.sizes["d_model"] // 2, is_gated=True)
    return mixture(
        budget,
        width=0.5,
        n_experts=15,
        n_experts_per_token=3,
        shared=shared,
        n_shared_experts=1,
        balance="none",
    )


EXPERIMENT = Experiment(
    id="shared-experts",
    technique="shared-experts",
    question="Do fine-grained experts with a shared one reach a lower loss at equal size?",
    expectation=Expectation(
        statement="At equal total and active parameters the finer and shared experts are better: "
        "at"
        "2B they match a mixture of half as many again.",
        source=DAI_2024,
        refuted_if="the loss is not lower",
        worth_it=True,
    ),
    how=Training(data=text, recipe=RECIPE, score=active),
    matched=Matched(
        what=("parameters", "active parameters", "tokens"),
        within=0.05,
        because="as much width in all and a token; the router has seven more rows",
    ),
    arms=(
        Arm(id="wide", label="2 of 8", model=wide, loss=balanced),
        Arm(id="narrow", label="3 of 15, 1 shared", model=narrow, loss=balanced),
    ),
    metrics=(LOSS, ACTIVE),
    claims=(superior(LOSS, "narrow", by=0.0),),
    budgets=BUDGETS,
    predicted=lambda setting: unseen(setting, "loss"),
    means={
        "confirmed": "Finer experts combine better, already at this size.",
        "refuted": "At this size finer experts combine no better: what they can specialise in are "
        "the topics of far more text.",
    },
)
