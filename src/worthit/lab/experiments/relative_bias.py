"""A learned bias for each range of distances, against rotation, trained at 128 tokens.

T5's last bucket begins near 128 tokens: a shorter training would leave buckets untrained, and the
test would be about those.
"""

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
from worthit.lab.metrics import STEP_SECONDS
from worthit.techniques.position._positions import PRESS_2021

# Biases are gathered for every pair of tokens, which is slow to train through: fewer steps.
SHORTER = {"smoke": (30, 10), "quick": (250, 80), "full": (2000, 600)}
AT_128 = {
    name: replace(
        BUDGETS[name],
        n_steps=n_steps,
        n_tuning_steps=n_tuning,
        batch_size=4,
        sizes={"seq_len": 128, "d_model": 32, "windows": 32},
    )
    for name, (n_steps, n_tuning) in SHORTER.items()
}

EXPERIMENT = Experiment(
    id="relative-bias",
    technique="relative-bias",
    question="Does a learned bias by distance read on better than rotation?",
    expectation=Expectation(
        statement="Extrapolates better than rotary positions, since far and farther share one "
        "trained bucket, at no loss within the trained length.",
        source=replace(PRESS_2021, where="section 2, figure 1; Kazemnejad et al. 2023, section 4"),
        refuted_if="its loss at four times the trained length is not lower than that of rotary "
        "positions, or it is worse by 0.05 nats at the trained length",
        worth_it=True,
    ),
    how=ON_TEXT,
    matched=MATCHED,
    arms=(
        arm("rope", "rotary"),
        arm("relative-bias", "learned biases"),
    ),
    metrics=(AT[4], LOSS, RISE[2], RISE[4], STEP_SECONDS),
    claims=(
        superior(AT[4], "relative-bias", by=0.0),
        no_worse(LOSS, "relative-bias"),
    ),
    budgets=AT_128,
    predicted=unseen,
    means={
        "confirmed": "Far and farther look the same, and that is what lets it read on: worth it "
        "where a kernel takes an additive bias.",
        "refuted": "The buckets are trained, their company is not: four times as many keys share "
        "the last one, and what is near is outweighed.",
    },
)
