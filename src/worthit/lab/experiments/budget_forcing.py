"""A model that has learned to try again is made to, or cut short; beside votes for the same tokens.

The student's training shows tries that may hold a slip, each followed by a better one, and never a
slip as what to say: as traces that reflect show a model how to doubt itself. `~` stands for Wait.
"""

from __future__ import annotations

from worthit.lab.claims import no_worse, superior, worse
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments._reasoning import (
    ACCURACY,
    TOKENS,
    budgets,
    measures,
    students,
    unseen,
)
from worthit.reason import budget_forcing, self_consistency
from worthit.techniques.reasoning._answers import MUENNIGHOFF_2025

N_ANSWER = 2


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Accuracy and tokens of one arm."""
    student = context.shared[seed]
    kind = student.kind
    if "votes" in arm.options:
        return measures(
            self_consistency(
                student.generator,
                kind.questions,
                read_answer=kind.read_answer,
                n=arm.options["votes"],
                max_tokens=kind.max_tokens,
                seed=seed,
            )
        )
    assert kind.thinking is not None
    n_waits = arm.options["waits"]
    whole = kind.max_tokens * (n_waits + 1)
    return measures(
        budget_forcing(
            student.generator,
            kind.questions,
            thinking=kind.thinking,
            read_answer=kind.read_answer,
            n_waits=n_waits,
            max_thinking=round(whole * arm.options.get("share", 1.0)),
            max_answer=N_ANSWER,
            seed=seed,
        )
    )


EXPERIMENT = Experiment(
    id="budget-forcing",
    technique="budget-forcing",
    question="Does a model that is told to wait answer better than one that votes?",
    expectation=Expectation(
        statement="Accuracy grows with the tokens of thinking that are forced: less when it is cut "
        "short, more with each Wait, and thinking longer is a better use of them than votes.",
        source=MUENNIGHOFF_2025,
        refuted_if="one Wait gains less than five points over none, two are five points below "
        "three votes of as many tokens, or half the thinking is as good as all of it",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",),
        because="all arms read one model; two Waits and three votes say the same number of tokens",
    ),
    arms=(
        Arm(id="plain", label="as it stops by itself", options={"waits": 0}),
        Arm(id="cut", label="half of the thinking", options={"waits": 0, "share": 0.5}),
        Arm(id="wait", label="one Wait", options={"waits": 1}),
        Arm(id="wait-2", label="two Waits", options={"waits": 2}),
        Arm(id="votes-3", label="three votes", options={"votes": 3}),
    ),
    metrics=(ACCURACY, TOKENS),
    claims=(
        superior(ACCURACY, "wait", by=0.05),
        no_worse(ACCURACY, "wait-2", margin=0.05, against="votes-3"),
        worse(ACCURACY, "cut", by=0.05),
    ),
    budgets=budgets(tries=2, percent_right=75),
    predicted=unseen,
    setup=students,
)
