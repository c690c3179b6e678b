"""SPIN's rounds on the demonstrations that the tutor was fine-tuned on, beside more fine-tuning."""

from __future__ import annotations

from worthit.align import SPIN, self_play
from worthit.lab.claims import Metric, not_better, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Measures
from worthit.lab.experiments._preferences import (
    BOTH_FELL,
    BUDGETS,
    CHOSEN,
    FINE_TUNING,
    PREFERENCES,
    RANKED,
    RIGHT,
    SEPARATE,
    half_learned,
    on_shown,
    predicted,
    read,
    shown,
    start,
    steps,
)
from worthit.lab.tasks.grammar_tutor import END
from worthit.techniques.alignment._preferences import CHEN_2024

LONGEST = 20
DIFFERENT = Metric(
    id="different",
    name="answers of the last round that differ from their demonstrations",
    margin=0.05,
)


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Fine-tune on, or play rounds against oneself."""
    model, reference = start(context, seed), start(context, seed)
    rounds = arm.options["rounds"]
    n = context.budget.sizes["updates"] // 3
    if not rounds:
        on_shown(model, shown("train"), steps(context, FINE_TUNING, n_steps=3 * n), seed)
        return read(model, reference)
    played = self_play(
        model,
        shown("train"),
        [],
        SPIN(n_rounds=rounds),
        steps(context, PREFERENCES, n_steps=n),
        seed=seed,
        stop_ids=(END,),
        max_tokens=LONGEST,
    )
    different = played[-1].n_different / played[-1].n
    return {**read(model, reference), "different": different}


EXPERIMENT = Experiment(
    id="spin",
    technique="spin",
    question="Does playing against oneself gain what more fine-tuning on the same data does not?",
    expectation=Expectation(
        statement="Three rounds of self-play beat further fine-tuning on the same demonstrations, "
        "and most of the gain comes in the first.",
        source=CHEN_2024,
        refuted_if="further fine-tuning has as many forms right, or rounds two and three add 5 "
        "points to the first",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=SEPARATE,
    arms=(
        Arm(id="fine-tuned", label="more fine-tuning", options={"rounds": 0}),
        Arm(id="one", label="one round", options={"rounds": 1}),
        Arm(id="two", label="two rounds", options={"rounds": 2}),
        Arm(id="three", label="three rounds", options={"rounds": 3}),
    ),
    metrics=(RIGHT, RANKED, CHOSEN, BOTH_FELL, DIFFERENT),
    claims=(
        superior(RIGHT, "three", by=0.0),
        not_better(RIGHT, "three", against="one"),
    ),
    budgets=BUDGETS,
    predicted=predicted("right", "ranked"),
    setup=half_learned,
    means={
        # Written after the run.
        "refuted": "More fine-tuning has more forms right: against a model that errs in three of "
        "four sampled answers, self-play pushes its own answers down and lifts the right ones no "
        "further. SPIN is for models that have learned their demonstrations.",
    },
)
