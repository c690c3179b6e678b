"""ORPO from nothing, beside fine-tuning and then DPO: as many updates of as many rows."""

from __future__ import annotations

from worthit.align import DPO, ORPO
from worthit.lab.claims import no_worse, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Measures
from worthit.lab.experiments._preferences import (
    BOTH_FELL,
    BUDGETS,
    CHOSEN,
    PREFERENCES,
    RANKED,
    REJECTED,
    RIGHT,
    SEPARATE,
    fresh,
    on_pairs,
    on_shown,
    pairs_of,
    predicted,
    read,
    shown,
    steps,
)
from worthit.techniques.alignment._preferences import HONG_2024

# A fresh tutor takes more updates, at the rate of fine-tuning from nothing.
FROM_NOTHING, N_TIMES = 3e-3, 3
WEIGHT = 0.3


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Teach a fresh tutor in one stage or two."""
    model, reference = fresh(context, seed), fresh(context, seed)
    n = N_TIMES * context.budget.sizes["updates"]
    rows = 2 * context.budget.sizes["pairs"]
    pairs = pairs_of("train", seed, n_each=2)
    if arm.id == "orpo":
        on_pairs(model, pairs, ORPO(weight=WEIGHT), steps(context, FROM_NOTHING, n_steps=n), seed)
        return read(model, reference)
    n_first = n if arm.id == "fine-tuned" else n - n // N_TIMES
    on_shown(model, shown("train"), steps(context, FROM_NOTHING, n_steps=n_first, rows=rows), seed)
    if arm.id == "then-dpo":
        on_pairs(model, pairs, DPO(), steps(context, PREFERENCES, n_steps=n - n_first), seed)
    return read(model, reference)


EXPERIMENT = Experiment(
    id="orpo",
    technique="orpo",
    question="Can fine-tuning and preferences be one stage, without a reference?",
    expectation=Expectation(
        statement="In one stage from a base model, ORPO answers better than fine-tuning followed "
        "by DPO, and ranks pairs better than fine-tuning alone.",
        source=HONG_2024,
        refuted_if="fine-tuning and then DPO has more forms right, or ORPO ranks pairs no better "
        "than fine-tuning",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=SEPARATE,
    arms=(
        Arm(id="then-dpo", label="fine-tuning, then DPO"),
        Arm(id="orpo", label="ORPO"),
        Arm(id="fine-tuned", label="fine-tuning alone"),
    ),
    metrics=(RIGHT, RANKED, CHOSEN, REJECTED, BOTH_FELL),
    claims=(
        superior(RIGHT, "orpo", by=0.0),
        superior(RANKED, "orpo", by=0.0, against="fine-tuned"),
        no_worse(RIGHT, "orpo", against="fine-tuned"),
    ),
    budgets=BUDGETS,
    predicted=predicted("right", "ranked"),
    means={
        # Written after the run.
        "refuted": "One stage beats fine-tuning and then DPO by ten points, as DPO takes away what "
        "fine-tuning gave; but as many rows of right forms alone beat both: half of what ORPO "
        "reads are wrong ones.",
    },
)
