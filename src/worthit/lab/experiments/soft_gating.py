"""All experts for every token, against one: what the rest of the compute buys."""

from __future__ import annotations

from worthit.lab.claims import no_worse, ratio_between
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Matched, Training
from worthit.lab.experiments._mixtures import ACTIVE, BUDGETS, active, balanced, mixture
from worthit.lab.experiments._text import LOSS, RECIPE, text
from worthit.lab.metrics import STEP_SECONDS
from worthit.lab.predict import unseen
from worthit.spec.model import ModelSpec
from worthit.techniques.moe._experts import SHAZEER_2017

FEW = 4


def one(budget: Budget) -> ModelSpec:
    """One of four experts a token."""
    return mixture(
        budget, n_experts=FEW, n_experts_per_token=1, has_normalised_weights=False, balance="none"
    )


def all_of_them(budget: Budget) -> ModelSpec:
    """Four experts a token, weighted by a softmax."""
    return mixture(budget, n_experts=FEW, n_experts_per_token=FEW, routing="soft", balance="none")


EXPERIMENT = Experiment(
    id="soft-gating",
    technique="soft-gating",
    question="What does a dense mixture give for computing every expert?",
    expectation=Expectation(
        statement="A sparse gate keeps the quality of a dense one at a fraction of its compute: "
        "the"
        "dense mixture is no worse, and that is all its compute buys.",
        source=SHAZEER_2017,
        refuted_if="the dense mixture's loss is 0.05 nats worse than that of one expert a token",
        worth_it=False,
    ),
    how=Training(data=text, recipe=RECIPE, score=active),
    matched=Matched(
        what=("parameters", "tokens"),
        because="the same experts; what differs is how many of them a token computes",
    ),
    arms=(
        Arm(id="one", label="one of four", model=one, loss=balanced),
        Arm(id="soft", label="all four, weighted", model=all_of_them),
    ),
    metrics=(LOSS, ACTIVE, STEP_SECONDS),
    claims=(no_worse(LOSS, "soft"), ratio_between(ACTIVE, "soft", 1.2)),
    budgets=BUDGETS,
    predicted=lambda setting: unseen(setting, "loss"),
    means={
        "confirmed": "Every expert for every token is no worse, and costs them all: a mixture is "
        "worth having for what it leaves out.",
        "refuted": "Averaging all experts is worse here than choosing one: they have no reason to "
        "become different.",
    },
)
