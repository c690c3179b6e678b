"""Gated against an L1 penalty at the same number of latents: is shrinkage gone?"""

from __future__ import annotations

from worthit.lab.claims import at_most, superior
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._dictionaries import (
    BUDGETS,
    EXPLAINED,
    L1,
    MATCHED,
    METRICS,
    ON_BOTH,
    SHRUNK,
    TUTOR,
    arm_of,
    setup,
)
from worthit.techniques.interpretability._autoencoder import RAJAMANOHARAN_GATED

EXPERIMENT = Experiment(
    id="gated-sae",
    technique="gated-sae",
    question="Does penalising gates instead of sizes remove the shrinkage, and does that explain "
    "more?",
    expectation=Expectation(
        statement="Reconstructions are no longer shrunk, and at equal sparsity more is explained.",
        source=RAJAMANOHARAN_GATED,
        refuted_if="more than 5 % shrinkage is left, or it explains less than 2 points more than "
        "L1 on planted directions or on the tutor",
        worth_it=True,
    ),
    how=ON_BOTH,
    matched=MATCHED,
    arms=(L1, arm_of("gated", "Gated")),
    metrics=METRICS,
    claims=(
        superior(SHRUNK, "gated", by=0.05),
        at_most(SHRUNK, "gated", 0.05),
        superior(EXPLAINED, "gated"),
        superior(TUTOR, "gated"),
    ),
    budgets=BUDGETS,
    setup=setup,
    means={
        "confirmed": "What L1 takes off every latent, Gated leaves on: that is where its better "
        "reconstruction comes from.",
    },
)
