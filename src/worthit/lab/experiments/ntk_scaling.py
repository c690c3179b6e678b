"""NTK-aware scaling against interpolation: which of the two works without any fine-tuning?"""

from __future__ import annotations

from dataclasses import replace

from worthit.lab.claims import superior
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._rope_scaling import (
    AT_ONCE,
    BUDGETS,
    HOW,
    MATCHED,
    SHORT,
    TUNED,
    arm,
    trained,
    unseen,
)
from worthit.techniques.position._positions import PENG_2023_YARN

EXPERIMENT = Experiment(
    id="ntk-scaling",
    technique="ntk-scaling",
    question="Without fine-tuning, does a larger base read four times as far with less harm than "
    "interpolation does?",
    expectation=Expectation(
        statement="Lower loss than interpolation, long and short, with no fine-tuning: fast "
        "rotations, which tell neighbours apart, are left alone.",
        source=replace(PENG_2023_YARN, where="section 3.1"),
        refuted_if="interpolation has as low a loss at four times the length, or at the trained "
        "one",
        worth_it=True,
    ),
    how=HOW,
    matched=MATCHED,
    arms=(
        arm("linear", "interpolated"),
        arm("ntk", "larger base"),
        arm(None, "as trained"),
    ),
    metrics=(AT_ONCE, SHORT, TUNED),
    claims=(
        superior(AT_ONCE, "ntk"),
        superior(SHORT, "ntk"),
        superior(AT_ONCE, "ntk", by=0.0, against="plain"),
    ),
    budgets=BUDGETS,
    predicted=unseen,
    setup=trained,
    means={
        "refuted": "It does spare the trained length, where interpolation ruins an untuned model, "
        "and reads on better than nothing does; but at four times the length interpolation is "
        "better: of eight pairs those in the middle are stretched by less than four and meet "
        "angles that were never seen.",
        "confirmed": "Where nothing can be fine-tuned, change the base and not the positions.",
    },
)
