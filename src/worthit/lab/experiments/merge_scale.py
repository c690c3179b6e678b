"""Do larger models merge more easily? The sum of two task vectors, by width."""

from __future__ import annotations

from dataclasses import replace

from worthit.lab.claims import superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Budget, Custom, Expectation, Experiment, Measures
from worthit.lab.experiments._merging import (
    KEPT,
    MATCHED,
    NORMALISED,
    QUICK,
    SCALES,
    SKILL,
    Family,
    budgets,
    chosen,
    families,
    measures,
    predicted,
    small,
)
from worthit.lab.experiments.task_arithmetic import added
from worthit.techniques.merging._checkpoints import YADAV_2024

# Widths as shares of the budget's.
SHARES = {"narrow": 0.5, "middle": 1.0, "wide": 2.0}


def wider(budget: Budget, share: float) -> Budget:
    """The budget with another width; a head has 16 channels."""
    width = max(16, round(share * budget.sizes["d_model"] / 16) * 16)
    return replace(budget, sizes={**budget.sizes, "d_model": width})


def by_width(context: Context) -> dict[str, dict[int, Family]]:
    """A family of models a width."""
    return {
        name: families(context, small(wider(context.budget, share)), name)
        for name, share in SHARES.items()
    }


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """The sum at the scale that validation chooses."""
    family: Family = context.shared[arm.id][seed]
    state, _ = chosen(family, [{"scale": s} for s in SCALES], lambda scale: added(family, scale))
    return measures(family, state)


EXPERIMENT = Experiment(
    id="merge-scale",
    technique="task-arithmetic",
    question="Do larger models keep more of what is merged?",
    expectation=Expectation(
        statement="From 1B to 64B parameters, larger models merge more easily by any method.",
        source=YADAV_2024,
        refuted_if="four times the width keeps no more of the experts' accuracy by three points",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=MATCHED,
    arms=(
        Arm(id="narrow", label="half the width"),
        Arm(id="middle", label="the width of the others"),
        Arm(id="wide", label="twice the width"),
    ),
    metrics=(NORMALISED, KEPT, SKILL),
    claims=(superior(NORMALISED, "wide"), superior(KEPT, "wide", by=0.05)),
    budgets=budgets(replace(QUICK, n_seeds=4, setup_seconds=150.0)),
    predicted=predicted,
    setup=by_width,
    means={
        "confirmed": "Wider models have more room: merging is a matter of size first.",
        "refuted": "Within the widths that train in a minute, width does not make room for two.",
    },
)
