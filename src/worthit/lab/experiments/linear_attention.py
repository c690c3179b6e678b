"""Linear attention against softmax attention on recall, by the size of its state.

A state of 64 rows takes as many bytes as the whole cache of the 32 tokens that are read.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.lab.claims import ordered, worse
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._recall import (
    BUDGETS,
    MATCHED,
    ON_RECALL,
    RECALLED,
    STATE_BYTES,
    attention,
    linear,
    predicted,
)
from worthit.techniques.attention._sources import ARORA_2023

EXPERIMENT = Experiment(
    id="linear-attention",
    technique="linear-attention",
    question="How large a state does linear attention need to recall what attention recalls?",
    expectation=Expectation(
        statement="Recall grows with the state and stays below attention's: what has been added to "
        "one sum is not told apart again.",
        source=replace(ARORA_2023, where="sections 3 and 4"),
        refuted_if="a smaller state recalls as much as a larger one, or 16 rows recall within 10 "
        "points of attention",
        worth_it=False,
    ),
    how=ON_RECALL,
    matched=MATCHED,
    arms=(
        attention(),
        linear("linear", 4, name="linear-4"),
        linear("linear", 16, name="linear-16"),
        linear("linear", 64, name="linear-64"),
    ),
    metrics=(RECALLED, STATE_BYTES),
    claims=(
        worse(RECALLED, "linear-16", by=0.1),
        *ordered(RECALLED, "attention", "linear-64", "linear-16", "linear-4"),
    ),
    budgets=BUDGETS,
    predicted=predicted,
    means={
        "confirmed": "Recall is bought by the row of the state: worth it where sequences are far "
        "longer than what must be remembered of them.",
    },
)
