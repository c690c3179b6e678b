"""No positions at all against rotation: does the causal mask say enough?"""

from __future__ import annotations

from dataclasses import replace

from worthit.lab.claims import no_worse, superior
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
from worthit.techniques.position._positions import KAZEMNEJAD_2023

EXPERIMENT = Experiment(
    id="nope",
    technique="nope",
    question="What does a causal decoder lose without positions, and does it then read on better?",
    expectation=Expectation(
        statement="Close to a model with positions within the trained length, and a smaller rise "
        "beyond it.",
        source=replace(KAZEMNEJAD_2023, where="section 4; Haviv et al. 2022, section 4"),
        refuted_if="it is worse by 0.1 nats at the trained length, or its loss rises by as much as "
        "that of rotary positions at four times it",
        worth_it=None,
    ),
    how=ON_TEXT,
    matched=MATCHED,
    arms=(
        arm("rope", "rotary"),
        arm("nope", "no positions"),
    ),
    metrics=(LOSS, AT[4], RISE[2], RISE[4]),
    claims=(
        no_worse(LOSS, "nope", margin=0.1),
        superior(RISE[4], "nope", by=0.0),
    ),
    budgets=BUDGETS,
    predicted=unseen,
    means={
        "refuted": "The loss rises far less beyond the trained length, as expected, but two layers "
        "without positions are three tenths of a nat worse within it: counting by the mask takes "
        "depth or training that a model this small has not.",
        "confirmed": "The mask says enough: a layer or two without positions are free, and read on "
        "better.",
    },
)
