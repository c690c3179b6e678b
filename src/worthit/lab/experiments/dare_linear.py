"""Nine entries of ten dropped: how much of a task vector is needed, by density."""

from __future__ import annotations

from worthit.lab.claims import no_worse
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Measures
from worthit.lab.experiments._merging import (
    MATCHED,
    NORMALISED,
    RETAINED,
    SCALES,
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
from worthit.merge.dare import dare_linear
from worthit.techniques.merging._checkpoints import YU_2023

DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1.0)


def thinned(family: Family, density: float, scale: float, seed: int) -> State:
    """The base plus both task vectors, of which a share `density` is drawn and enlarged."""
    weights = weights_of(family)
    return merged(
        family,
        dare_linear,
        weights=weights,
        densities=[density] * len(weights),
        scale=scale,
        seed=seed,
        rescale="density",
    )


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """One density of one seed, at the scale that validation chooses."""
    family: Family = context.shared[seed]
    density = arm.options["density"]
    state, best = chosen(
        family,
        [{"scale": s} for s in SCALES],
        lambda scale: thinned(family, density, scale, seed),
    )
    if density < 1:
        return measures(family, state)
    sweep = tuple((d, skill_of(family, thinned(family, d, best["scale"], seed))) for d in DENSITIES)
    return measures(family, state, **{"skill by density": sweep})


EXPERIMENT = Experiment(
    id="dare-linear",
    technique="dare-linear",
    question="Can nine tenths of every task vector be dropped for nothing?",
    expectation=Expectation(
        statement="90 % of the entries, and more, drop without loss where fine-tuning moved them "
        "by 0.005 at most; beyond, hardly any.",
        source=YU_2023,
        refuted_if="with a tenth of the entries the merge is worse by three points",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=MATCHED,
    arms=(
        Arm(id="all", label="every entry", options={"density": 1.0}),
        Arm(id="half", label="half of them", options={"density": 0.5}),
        Arm(id="tenth", label="a tenth of them", options={"density": 0.1}),
    ),
    metrics=(SKILL, NORMALISED, RETAINED),
    claims=(no_worse(SKILL, "half"), no_worse(SKILL, "tenth")),
    budgets=budgets(),
    predicted=predicted,
    setup=families,
    means={
        "confirmed": "Most of a task vector is redundant, at this size as well.",
        "refuted": "Fine-tuning moves the weights of so small a model far, a fifth of their "
        "length: what is dropped by chance is missed, as the paper says of large steps.",
    },
)
