"""A learned table of positions against rotation: rows past the trained length stay untrained.

Both models have room for four times the trained length; the table's last rows are what its
initialisation left there.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.lab.claims import at_least, not_better, worse
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
from worthit.lab.metrics import PARAMETERS
from worthit.techniques.position._positions import PRESS_2021

EXPERIMENT = Experiment(
    id="learned-positions",
    technique="learned-positions",
    question="Does a learned table of positions give anything that rotation does not?",
    expectation=Expectation(
        statement="No gain at the trained length, and rows that were never trained spoil "
        "everything beyond it.",
        source=replace(PRESS_2021, where="sections 1 and 2"),
        refuted_if="the table is better by 0.05 nats at the trained length, or loses less than 0.1 "
        "nats at four times it",
        worth_it=False,
    ),
    how=ON_TEXT,
    matched=MATCHED,
    arms=(
        arm("rope", "rotary"),
        arm("learned", "learned table"),
    ),
    metrics=(LOSS, AT[4], RISE[2], RISE[4], PARAMETERS),
    claims=(
        not_better(LOSS, "learned"),
        worse(AT[4], "learned"),
        at_least(RISE[4], "learned", 0.1),
    ),
    budgets=BUDGETS,
    predicted=unseen,
    means={
        "refuted": "No better at the trained length, and its untrained rows do cost four tenths of "
        "a nat beyond it; rotation is better within and loses three times as much beyond, where "
        "rows of small noise mislead less than unseen angles.",
        "confirmed": "The table is fitted to the positions it saw, and has rows of noise for the "
        "others: only where every text has the same short length.",
    },
)
