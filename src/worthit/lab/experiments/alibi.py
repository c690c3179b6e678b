"""A penalty that grows with distance, against rotation and sinusoids: train short, test long."""

from __future__ import annotations

from dataclasses import replace

from worthit.lab.claims import at_most, no_worse, superior
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._positions import (
    AT,
    BUDGETS,
    LOSS,
    MATCHED,
    ON_TEXT,
    RISE,
    arm,
    unseen,
)
from worthit.techniques.position._positions import PRESS_2021

EXPERIMENT = Experiment(
    id="alibi",
    technique="alibi",
    question="Does a model with linear biases read four times its training for nothing?",
    expectation=Expectation(
        statement="As good at the trained length, and no rise of the loss at all beyond it, where "
        "sinusoids fail at once.",
        source=replace(PRESS_2021, where="section 4, figure 4"),
        refuted_if="the loss rises by 0.05 nats at four times the trained length, or is worse by "
        "0.05 nats at it",
        worth_it=True,
    ),
    how=ON_TEXT,
    matched=MATCHED,
    arms=(
        arm("rope", "rotary"),
        arm("alibi", "linear biases"),
        arm("sinusoidal", "sinusoids"),
    ),
    metrics=(AT[4], LOSS, RISE[2], RISE[4]),
    claims=(
        at_most(RISE[4], "alibi", 0.05),
        superior(AT[4], "alibi"),
        superior(AT[4], "alibi", against="sinusoidal"),
        no_worse(LOSS, "alibi"),
    ),
    budgets=BUDGETS,
    predicted=unseen,
    means={
        "refuted": "It reads on as promised, where both others fail at once, and pays for it "
        "within the trained length: a penalty that only grows does not point at the third byte "
        "back as a rotation does, and this small model of bytes lives on exact neighbours.",
        "confirmed": "Trained short it reads long, because what is far hardly counts: worth it "
        "where texts outgrow the training and nothing far has to be found.",
    },
)
