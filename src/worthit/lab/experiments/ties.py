"""Trim, elect, merge: TIES beside the plain sum, three experts, each method at its best."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from worthit.lab.claims import superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Measures
from worthit.lab.experiments._merging import (
    MATCHED,
    NORMALISED,
    QUICK,
    RETAINED,
    SKILL,
    Family,
    State,
    budgets,
    chosen,
    families,
    measures,
    merged,
    predicted,
    skill_of,
    weights_of,
)
from worthit.lab.experiments.task_arithmetic import added
from worthit.merge.ties import ties
from worthit.techniques.merging._checkpoints import YADAV_2023

DENSITIES = (0.1, 0.2, 0.5, 0.8)
LAMBDAS = (0.6, 1.0, 1.5)
# As many values for the sum, over the range that suits it.
SCALES = tuple(round(0.1 * i, 1) for i in range(1, 1 + len(DENSITIES) * len(LAMBDAS)))


def elected(family: Family, density: float, scale: float) -> State:
    """The base with the elected mean of the trimmed task vectors."""
    weights = weights_of(family)
    densities = [density] * len(weights)
    return merged(family, ties, weights=weights, densities=densities, scale=scale)


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """One merge of one seed, at the knobs that validation chooses."""
    family: Family = context.shared[seed]
    if arm.id == "sum":
        state, _ = chosen(
            family, [{"scale": s} for s in SCALES], lambda scale: added(family, scale)
        )
        return measures(family, state)
    tries = [{"density": d, "scale": s} for d, s in product(DENSITIES, LAMBDAS)]
    state, best = chosen(family, tries, lambda **knobs: elected(family, **knobs))
    sweep = tuple(
        (d, skill_of(family, elected(family, d, best["scale"]))) for d in (*DENSITIES, 1.0)
    )
    return measures(family, state, **{"skill by density": sweep})


EXPERIMENT = Experiment(
    id="ties",
    technique="ties",
    question="Does an election beat the sum of three task vectors, both at their best?",
    expectation=Expectation(
        statement="TIES is above task arithmetic by one to three points, the more tasks the more.",
        source=YADAV_2023,
        refuted_if="it is not better by three points at the best density and scale of each",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=MATCHED,
    arms=(
        Arm(id="sum", label="the sum, at its best scale"),
        Arm(id="ties", label="TIES, at its best density and scale"),
    ),
    metrics=(SKILL, NORMALISED, RETAINED),
    claims=(superior(SKILL, "ties"),),
    budgets=budgets(replace(QUICK, sizes={**QUICK.sizes, "n_tasks": 3}, setup_seconds=60.0)),
    predicted=predicted,
    setup=families,
    means={
        "confirmed": "Where three task vectors collide, electing signs keeps more than adding.",
        "refuted": "Once the sum has its own best scale, trimming and electing keep no more: in a "
        "small model no entry of a task vector is idle, so what is trimmed is missed.",
    },
)
