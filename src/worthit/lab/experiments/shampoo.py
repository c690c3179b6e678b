"""Gradients preconditioned on both sides: loss after as many steps."""

from __future__ import annotations

from worthit.lab.claims import superior
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._optimizers import BUDGETS, MATCHED, arm
from worthit.lab.experiments._text import LOSS, ON_TEXT, unseen
from worthit.lab.metrics import DIVERGED, STEP_SECONDS
from worthit.techniques.optimizer.shampoo import GUPTA_2018

EXPERIMENT = Experiment(
    id="shampoo",
    technique="shampoo",
    question="Does Shampoo train further in the same steps than a well tuned AdamW?",
    expectation=Expectation(
        statement="Fewer steps to a loss than a diagonal method, for more work a step.",
        source=GUPTA_2018,
        refuted_if="after as many steps the loss is not 0.05 nats lower than AdamW's",
        worth_it=True,
    ),
    how=ON_TEXT,
    matched=MATCHED,
    arms=(arm("adamw", "AdamW"), arm("shampoo", "Shampoo")),
    metrics=(LOSS, STEP_SECONDS, DIVERGED),
    claims=(superior(LOSS, "shampoo", by=0.05),),
    budgets=BUDGETS,
    predicted=lambda setting: [p for p in unseen(setting) if p.metric == "loss"],
    means={
        "confirmed": "Two-sided preconditioning pays a step; whether it pays a second is the "
        "time of a step.",
        "refuted": "Without grafting and learning-rate schedules of its own Shampoo is no "
        "further after as many steps than AdamW at its best rate.",
    },
)
