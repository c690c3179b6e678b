"""Adam in Shampoo's eigenbasis: loss after as many steps."""

from __future__ import annotations

from worthit.lab.claims import superior
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._optimizers import BUDGETS, MATCHED, arm
from worthit.lab.experiments._text import LOSS, ON_TEXT, unseen
from worthit.lab.metrics import DIVERGED, STEP_SECONDS
from worthit.techniques.optimizer.soap import VYAS_2024

EXPERIMENT = Experiment(
    id="soap",
    technique="soap",
    question="Does SOAP train further in the same steps than a well tuned AdamW?",
    expectation=Expectation(
        statement="AdamW's loss in 40 % fewer steps, and so a lower one after the same steps.",
        source=VYAS_2024,
        refuted_if="after as many steps the loss is not 0.05 nats lower than AdamW's",
        worth_it=True,
    ),
    how=ON_TEXT,
    matched=MATCHED,
    arms=(arm("adamw", "AdamW"), arm("soap", "SOAP")),
    metrics=(LOSS, STEP_SECONDS, DIVERGED),
    claims=(superior(LOSS, "soap", by=0.05),),
    budgets=BUDGETS,
    predicted=lambda setting: [p for p in unseen(setting) if p.metric == "loss"],
    means={
        "confirmed": "Adam in a rotated basis trains further a step than Adam.",
        "refuted": "At this size the eigenbasis is found too late: in so few steps AdamW at its "
        "best rate is as far.",
    },
)
