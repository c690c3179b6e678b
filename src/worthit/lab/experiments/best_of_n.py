"""Eight worked answers to a sum, and one chosen: by an exact check, or by the model's probability.

A check of sums is free and never wrong, as tests of code or a proof checker nearly are. The model's
own probability is what there is without one.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.lab.claims import not_better, ratio_between, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments._reasoning import (
    ACCURACY,
    TOKENS,
    among_samples,
    budgets,
    measures,
    samples_cost,
    students,
)
from worthit.reason import once
from worthit.techniques.reasoning._answers import BROWN_2024

N = 8


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Accuracy and tokens of one arm."""
    student = context.shared[seed]
    if arm.id == "once":
        kind = student.kind
        return measures(
            once(
                student.generator,
                kind.questions,
                read_answer=kind.read_answer,
                max_tokens=kind.max_tokens,
            )
        )
    n = context.budget.sizes["samples"]
    return among_samples(student, arm.options["strategy"], N, n, seed)


EXPERIMENT = Experiment(
    id="best-of-n",
    technique="best-of-n",
    question="What do eight answers in place of one buy, with an exact check and without?",
    expectation=Expectation(
        statement="With a check accuracy grows with the logarithm of the samples, far beyond one "
        "answer; without one the best of several is little better than the first.",
        source=replace(BROWN_2024, where="abstract"),
        refuted_if="eight checked answers are not ten points above one greedy answer, or eight "
        "judged by the model's own probability are five or more points above it",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",),
        because="both arms of eight read the same samples, and say eight times the tokens of one "
        "answer; the question is what those buy",
    ),
    arms=(
        Arm(id="once", label="one greedy answer"),
        Arm(
            id="check",
            label="best of 8 by an exact check",
            options={"strategy": "best-of-n, exact check"},
        ),
        Arm(
            id="probability",
            label="best of 8 by probability",
            options={"strategy": "best-of-n by probability"},
        ),
    ),
    metrics=(ACCURACY, TOKENS),
    claims=(
        superior(ACCURACY, "check", by=0.1),
        not_better(ACCURACY, "probability", by=0.05),
        ratio_between(TOKENS, "check", 7.2, 8.8),
    ),
    budgets=budgets(),
    predicted=samples_cost(lambda arm: float(N)),
    setup=students,
    means={
        "confirmed": "Worth it where something can tell a right answer: eight checked answers beat "
        "one by far. Chosen by the model's own probability they buy nothing.",
    },
)
