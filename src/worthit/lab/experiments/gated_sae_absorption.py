"""Gated against an L1 penalty: are implied features absorbed less?

Gates still pay for every latent that is on, and it is that price which absorption saves.
"""

from __future__ import annotations

from worthit.lab.claims import superior
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._dictionaries import (
    ABSORBED,
    BUDGETS,
    L1,
    MATCHED,
    METRICS,
    ON_BOTH,
    arm_of,
    setup,
)
from worthit.techniques.interpretability._autoencoder import CHANIN_2024

EXPERIMENT = Experiment(
    id="gated-sae-absorption",
    technique="gated-sae",
    question="Does penalising gates instead of sizes keep a feature from being absorbed by those "
    "that imply it?",
    expectation=Expectation(
        statement="Often said of Gated autoencoders: with less pressure on sizes there is less "
        "absorption. The source defines absorption and finds it in every kind.",
        source=CHANIN_2024,
        refuted_if="implied features are absorbed in as many of their inputs as under L1, or not 5 "
        "points fewer",
        worth_it=True,
    ),
    how=ON_BOTH,
    matched=MATCHED,
    arms=(L1, arm_of("gated", "Gated")),
    metrics=(ABSORBED, *(m for m in METRICS if m is not ABSORBED)),
    claims=(superior(ABSORBED, "gated"),),
    budgets=BUDGETS,
    setup=setup,
    means={
        "refuted": "Gates pay for each latent that is on, and absorbing one in another saves that "
        "price: shrinkage goes, absorption stays.",
    },
)
