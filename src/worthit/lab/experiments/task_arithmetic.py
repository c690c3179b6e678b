"""Two skills by addition: the sum of two task vectors beside training on both, on the tutor."""

from __future__ import annotations

from worthit.lab.claims import at_least, superior, worse
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Measures
from worthit.lab.experiments._merging import (
    KNOWN,
    MATCHED,
    MULTI,
    NORMALISED,
    RETAINED,
    SCALES,
    SKILL,
    Family,
    State,
    budgets,
    by_tense,
    chosen,
    families,
    mean,
    measures,
    merged,
    predicted,
    weights_of,
)
from worthit.merge.task_arithmetic import task_arithmetic
from worthit.techniques.merging._checkpoints import ILHARCO_2023


def added(family: Family, scale: float) -> State:
    """The base with the experts' task vectors, each `scale` times."""
    return merged(family, task_arithmetic, weights=weights_of(family), scale=scale)


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """One model of one seed, on the test split."""
    family: Family = context.shared[seed]
    if arm.id == "base":
        return measures(family, family.base)
    if arm.id == "multi":
        return measures(family, family.multi)
    state, _ = chosen(family, [{"scale": s} for s in SCALES], lambda scale: added(family, scale))
    found = [(s, by_tense(family, added(family, s), "test")) for s in SCALES]
    skill = tuple((s, mean(scores, family.experts)) for s, scores in found)
    known = tuple((s, mean(scores, KNOWN)) for s, scores in found)
    return measures(family, state, **{"skill by scale": skill, "retained by scale": known})


EXPERIMENT = Experiment(
    id="task-arithmetic",
    technique="task-arithmetic",
    question="Does the sum of two task vectors do both tasks?",
    expectation=Expectation(
        statement="Sums of two task vectors of CLIP keep 98.9 % of the experts' accuracy on "
        "average; expected here are 90 % and a skill the base has not.",
        source=ILHARCO_2023,
        refuted_if="less than nine tenths of the experts' accuracy are kept",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=MATCHED,
    arms=(
        MULTI,
        Arm(id="base", label="the base, untouched"),
        Arm(id="sum", label="base plus both task vectors"),
    ),
    metrics=(SKILL, NORMALISED, RETAINED),
    claims=(
        at_least(NORMALISED, "sum", 0.9),
        superior(SKILL, "sum", by=0.1, against="base"),
        worse(SKILL, "sum"),
    ),
    budgets=budgets(),
    predicted=predicted,
    setup=families,
    means={
        "confirmed": "Both tasks, for the price of two additions, a little below training on both.",
        "refuted": "The sum is far above the base and far below training on both: in a model this "
        "small two fine-tunings move the same weights, and what they say to one question differs.",
    },
)
