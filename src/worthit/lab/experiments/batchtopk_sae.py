"""BatchTopK against TopK with as many latents on average, where inputs need different numbers."""

from __future__ import annotations

from worthit.lab.claims import no_worse, superior
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._dictionaries import (
    BUDGETS,
    EXPLAINED,
    MATCHED,
    METRICS,
    MISSED,
    ON_BOTH,
    TUTOR,
    arm_of,
    setup,
)
from worthit.techniques.interpretability._autoencoder import BUSSMANN_2024

EXPERIMENT = Experiment(
    id="batchtopk-sae",
    technique="batchtopk-sae",
    question="With as many latents on average, does sharing them out over the batch explain more?",
    expectation=Expectation(
        statement="Inputs differ in how many latents they need; at the same mean more is "
        "explained than with the same number for each.",
        source=BUSSMANN_2024,
        refuted_if="it explains less than 2 points more than TopK on planted directions, 2 points "
        "less on the tutor, or its threshold misses the mean number by 5 % in use",
        worth_it=True,
    ),
    how=ON_BOTH,
    matched=MATCHED,
    arms=(arm_of("topk", "TopK"), arm_of("batchtopk", "BatchTopK")),
    metrics=METRICS,
    claims=(
        superior(EXPLAINED, "batchtopk"),
        no_worse(TUTOR, "batchtopk"),
        no_worse(MISSED, "batchtopk", margin=0.05),
    ),
    budgets=BUDGETS,
    setup=setup,
    means={
        "confirmed": "Busy inputs get the latents that quiet ones leave: more is explained for "
        "the same mean, and one threshold is all that use needs.",
    },
)
