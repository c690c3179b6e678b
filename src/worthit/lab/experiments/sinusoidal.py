"""Fixed waves added to the tokens against a learned table, within the trained length and beyond.

The waves have a value at every position. Whether the model knows what to do with it is another
question, and the one that Press et al. asked.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.lab.claims import at_least, same
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
    id="sinusoidal",
    technique="sinusoidal",
    question="Do fixed waves replace a learned table, and can the model then read on past its "
    "training?",
    expectation=Expectation(
        statement="As good as a learned table at the trained length, and lost beyond it: "
        "perplexity rises soon after.",
        source=replace(PRESS_2021, where="section 2, figure 1; Vaswani et al. 2017, table 3 row E"),
        refuted_if="the waves are better or worse than the table by 0.05 nats at the trained "
        "length, or lose less than 0.1 nats at four times it",
        worth_it=False,
    ),
    how=ON_TEXT,
    matched=MATCHED,
    arms=(
        arm("learned", "learned table"),
        arm("sinusoidal", "sinusoids"),
    ),
    metrics=(LOSS, AT[4], RISE[2], RISE[4]),
    claims=(
        same(LOSS, "sinusoidal"),
        at_least(RISE[4], "sinusoidal", 0.1),
    ),
    # Twice the seeds: two schemes that are nearly the same take more of them to tell.
    budgets={**BUDGETS, "quick": replace(BUDGETS["quick"], n_seeds=8)},
    predicted=unseen,
    means={
        "confirmed": "A value at every position is not knowledge of every position: the waves save "
        "the table and nothing else.",
    },
)
