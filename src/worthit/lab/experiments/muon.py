"""Orthogonalised momentum for the matrices, AdamW for the rest: loss after as many steps."""

from __future__ import annotations

from worthit.lab.claims import superior
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._optimizers import BUDGETS, MATCHED, arm
from worthit.lab.experiments._text import LOSS, ON_TEXT, unseen
from worthit.lab.metrics import DIVERGED, STEP_SECONDS
from worthit.techniques.optimizer.muon import LIU_2025

EXPERIMENT = Experiment(
    id="muon",
    technique="muon",
    question="Does Muon train further in the same steps than a well tuned AdamW?",
    expectation=Expectation(
        statement="AdamW's loss with about half of its training compute, and so a lower one "
        "after the same steps.",
        source=LIU_2025,
        refuted_if="after as many steps the loss is not 0.05 nats lower than AdamW's",
        worth_it=True,
    ),
    how=ON_TEXT,
    matched=MATCHED,
    arms=(arm("adamw", "AdamW"), arm("muon", "Muon")),
    metrics=(LOSS, STEP_SECONDS, DIVERGED),
    claims=(superior(LOSS, "muon", by=0.05),),
    budgets=BUDGETS,
    predicted=lambda setting: [p for p in unseen(setting) if p.metric == "loss"],
    means={
        "confirmed": "Muon trains further a step than AdamW at its best rate, for little more "
        "time a step.",
        "refuted": "At its own best rate AdamW is as good here: most of the claimed gap is AdamW "
        "left at a rate that does not suit it.",
    },
)
