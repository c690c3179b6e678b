"""Along the arc or along the chord: SLERP beside the plain mean of two experts."""

from __future__ import annotations

from worthit.lab.claims import same
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Measures
from worthit.lab.experiments._merging import (
    MATCHED,
    NORMALISED,
    RETAINED,
    SKILL,
    Family,
    State,
    budgets,
    chosen,
    families,
    measures,
    predicted,
    skill_of,
)
from worthit.merge.linear import linear
from worthit.merge.slerp import slerp
from worthit.techniques import Source

PLACES = (0.3, 0.4, 0.5, 0.6, 0.7)
EXPECTED = Source(cite="worthit", title="Merging checkpoints", id="docs/merging.md")


def between(family: Family, t: float, *, is_arc: bool) -> State:
    """The model at share `t` of the way from the first expert to the second."""
    a, b = family.experts.values()
    if is_arc:
        return {name: slerp(a[name], b[name], t=t) for name in a}
    return {name: linear([a[name], b[name]], weights=[1 - t, t]) for name in a}


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """One merge of one seed, at the place that validation chooses."""
    family: Family = context.shared[seed]
    is_arc = arm.id == "arc"
    state, _ = chosen(
        family, [{"t": t} for t in PLACES], lambda t: between(family, t, is_arc=is_arc)
    )
    way = tuple(
        (t, skill_of(family, between(family, t, is_arc=is_arc))) for t in (0.0, *PLACES, 1.0)
    )
    return measures(family, state, **{"skill along the way": way})


EXPERIMENT = Experiment(
    id="slerp",
    technique="slerp",
    question="Does the arc between two fine-tunings of one base keep more than the chord?",
    expectation=Expectation(
        statement="Practice prefers SLERP for two models because it keeps the length of weights. "
        "From one base they differ by a small angle, where arc and chord are one: the same.",
        source=EXPECTED,
        refuted_if="arc and chord differ by three points",
        worth_it=False,
    ),
    how=Custom(run=run),
    matched=MATCHED,
    arms=(
        Arm(id="chord", label="the mean, along the chord"),
        Arm(id="arc", label="SLERP, along the arc"),
    ),
    metrics=(SKILL, NORMALISED, RETAINED),
    claims=(same(SKILL, "arc"), same(RETAINED, "arc")),
    budgets=budgets(),
    predicted=predicted,
    setup=families,
    means={
        "confirmed": "Between fine-tunings of one base the arc is the chord: take either.",
        "refuted": "At this size fine-tuning turns tensors far enough that the arc is another way.",
    },
)
