"""TopK against an L1 penalty at the same number of latents: what each explains and finds."""

from __future__ import annotations

from worthit.lab.claims import at_most, superior
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._dictionaries import (
    BUDGETS,
    EXPLAINED,
    L1,
    MATCHED,
    METRICS,
    MISSED,
    ON_BOTH,
    RECOVERED,
    TUTOR,
    arm_of,
    setup,
)
from worthit.techniques.interpretability._autoencoder import GAO_2024

EXPERIMENT = Experiment(
    id="topk-sae",
    technique="topk-sae",
    question="With as many latents on, does TopK explain more than an L1 penalty, and find more?",
    expectation=Expectation(
        statement="TopK sets the number of latents directly and reconstructs better than a "
        "penalty at that number.",
        source=GAO_2024,
        refuted_if="it explains less than 2 points more variance than L1, on planted directions or "
        "on the tutor, or misses its number by 2 %",
        worth_it=True,
    ),
    how=ON_BOTH,
    matched=MATCHED,
    arms=(L1, arm_of("topk", "TopK")),
    metrics=METRICS,
    claims=(
        superior(EXPLAINED, "topk"),
        superior(TUTOR, "topk"),
        superior(RECOVERED, "topk"),
        at_most(MISSED, "topk", 0.02),
    ),
    budgets=BUDGETS,
    setup=setup,
    means={
        "confirmed": "The same number of latents explains more without a penalty, and the number "
        "is what was asked for: no sweep of penalties.",
    },
)
