"""Rotation against sinusoids: distance inside the scores in place of waves on the tokens."""

from __future__ import annotations

from worthit.lab.claims import at_least, superior
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
from worthit.techniques.position.rope import SU_2021

EXPERIMENT = Experiment(
    id="rope",
    technique="rope",
    question="Is rotation worth it over sinusoids at the trained length, and how far does it read "
    "on?",
    expectation=Expectation(
        statement="Lower loss after as many steps, and still a marked rise beyond the trained "
        "length.",
        source=SU_2021,
        refuted_if="rotary positions gain less than 0.05 nats at the trained length, or lose less "
        "than 0.05 nats at four times it",
        worth_it=True,
    ),
    how=ON_TEXT,
    matched=MATCHED,
    arms=(
        arm("sinusoidal", "sinusoids"),
        arm("rope", "rotary"),
    ),
    metrics=(LOSS, AT[4], RISE[2], RISE[4]),
    claims=(
        superior(LOSS, "rope"),
        superior(AT[4], "rope"),
        at_least(RISE[4], "rope", 0.05),
    ),
    budgets=BUDGETS,
    predicted=unseen,
    means={
        "refuted": "Better where it was trained, as expected, and worse than sinusoids beyond: "
        "angles that were never seen mislead every head in every layer, and the better the model "
        "has learned to use them, the more. Stretch the positions before reading on.",
        "confirmed": "Distance is learned once, not for each pair of places: worth it, with one of "
        "the scalings before reading on.",
    },
)
