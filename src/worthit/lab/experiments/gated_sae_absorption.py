"""Gated against an L1 penalty: are implied features absorbed less?

Gates still pay for every latent that is on, and it is that price which absorption saves. Absorption
is a question about directions that are known, so that the planted world is all that is looked at.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.lab.claims import superior
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._dictionaries import (
    ABSORBED,
    BUDGETS,
    EXPLAINED,
    L1,
    MATCHED,
    MISSED,
    ON_PLANTED,
    RECOVERED,
    SHRUNK,
    arm_of,
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
    how=ON_PLANTED,
    matched=MATCHED,
    arms=(L1, arm_of("gated", "Gated")),
    metrics=(ABSORBED, EXPLAINED, RECOVERED, SHRUNK, MISSED),
    claims=(superior(ABSORBED, "gated"),),
    budgets={
        "smoke": replace(BUDGETS["smoke"], seconds=0.5, setup_seconds=0.0),
        "quick": replace(BUDGETS["quick"], n_seeds=8, seconds=5.0, setup_seconds=0.0),
        "full": replace(BUDGETS["full"], n_seeds=16, seconds=25.0, setup_seconds=0.0),
    },
    means={
        "refuted": "Gates pay for each latent that is on, and absorbing one in another saves that "
        "price: shrinkage goes, absorption stays.",
    },
)
