"""JumpReLU against L1, Gated and TopK at the same number of latents: which explains most."""

from __future__ import annotations

from dataclasses import replace

from worthit.lab.claims import no_worse, superior
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._dictionaries import (
    BUDGETS,
    EXPLAINED,
    L1,
    MATCHED,
    METRICS,
    ON_BOTH,
    TUTOR,
    arm_of,
    setup,
)
from worthit.techniques.interpretability._autoencoder import RAJAMANOHARAN_JUMP

EXPERIMENT = Experiment(
    id="jumprelu-sae",
    technique="jumprelu-sae",
    question="With as many latents on, does a threshold for each explain more than other kinds?",
    expectation=Expectation(
        statement="At equal sparsity JumpReLU reconstructs at least as well as Gated and TopK, "
        "and better than an L1 penalty.",
        source=RAJAMANOHARAN_JUMP,
        refuted_if="it explains 2 points less variance than Gated or TopK, or no more than L1, on "
        "planted directions or on the tutor",
        worth_it=True,
    ),
    how=ON_BOTH,
    matched=MATCHED,
    arms=(
        L1,
        arm_of("gated", "Gated"),
        arm_of("topk", "TopK"),
        arm_of("batchtopk", "BatchTopK"),
        arm_of("jumprelu", "JumpReLU"),
    ),
    metrics=METRICS,
    claims=(
        superior(EXPLAINED, "jumprelu"),
        no_worse(EXPLAINED, "jumprelu", against="gated"),
        no_worse(EXPLAINED, "jumprelu", against="topk"),
        superior(TUTOR, "jumprelu"),
        no_worse(TUTOR, "jumprelu", against="gated"),
        no_worse(TUTOR, "jumprelu", against="topk"),
    ),
    budgets={
        name: replace(budget, n_seeds=min(budget.n_seeds, 6)) for name, budget in BUDGETS.items()
    },
    setup=setup,
    means={
        "confirmed": "A threshold a latent, and nothing that shrinks: as good as any kind here at "
        "the same number of latents, and it absorbs least.",
        "refuted": "At least one other kind explains more at the same number of latents here: "
        "thresholds move with the learning rate, and so short a training may not place them.",
    },
)
