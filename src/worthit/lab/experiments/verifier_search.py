"""Search for a worked sum under a verifier of steps, against the best of as many whole answers.

The verifier is exact, or wrong about one text in six, of steps and of answers alike. A beam of two
tries four steps for each; eight whole answers say as many tokens.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.lab.claims import ratio_between, superior
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
from worthit.lab.tasks.worked_sums import STEP_TOKENS
from worthit.reason import beam_search, best_of_n, tree_search
from worthit.reason.search import by_steps
from worthit.reason.verify import exact, noisy
from worthit.techniques.reasoning._answers import SNELL_2024

WIDTH, BRANCH = 2, 4
NOISE = 1 / 6
# Tokens of a step at most: the last one is an answer and an end.
STEP = STEP_TOKENS + 3


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Accuracy and tokens of one arm."""
    student = context.shared[seed]
    kind, generator = student.kind, student.generator
    noise = arm.options["noise"]
    assert kind.step_score is not None
    steps = noisy(kind.step_score, noise, seed=seed)
    outcome = noisy(exact(kind.read_answer), noise, seed=seed)
    expand = by_steps(generator, stops=kind.step_stops, max_tokens=STEP, max_len=kind.max_tokens)
    n_terms = context.budget.sizes["terms"]
    if arm.options["search"] == "none":
        chosen = best_of_n(
            generator,
            kind.questions,
            score=outcome,
            read_answer=kind.read_answer,
            n=WIDTH * BRANCH,
            max_tokens=kind.max_tokens,
            seed=seed,
        )
    elif arm.options["search"] == "beam":
        chosen = beam_search(
            kind.questions,
            expand=expand,
            score=steps,
            final=outcome,
            read_answer=kind.read_answer,
            width=WIDTH,
            branch=BRANCH,
            max_steps=n_terms,
            seed=seed,
        )
    else:
        chosen = tree_search(
            kind.questions,
            expand=expand,
            score=steps,
            final=outcome,
            read_answer=kind.read_answer,
            branch=BRANCH,
            max_tokens=WIDTH * BRANCH * kind.max_tokens,
            seed=seed,
        )
    return measures(chosen)


def arm(id: str, label: str, search: str, noise: float) -> Arm:
    """One way to search under one verifier."""
    return Arm(id=id, label=label, options={"search": search, "noise": noise})


EXPERIMENT = Experiment(
    id="verifier-search",
    technique="verifier-search",
    question="Does it pay to look after every step, at the tokens of eight whole answers?",
    expectation=Expectation(
        statement="At few samples a beam under a verifier of steps is above best-of-n, and "
        "supervision of the process above that of the outcome.",
        source=replace(SNELL_2024, where="section 5.3; Lightman et al. 2023, figure 3"),
        refuted_if="a beam is not five points above the best of eight answers, be the verifier "
        "exact or wrong about one text in six",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",),
        because="the same model, questions and noise; a beam says at most the tokens of eight "
        "answers, and claims hold that it does not say more",
    ),
    arms=(
        arm("best-of-8", "best of 8, exact check", "none", 0.0),
        arm("beam", "beam of 2, four steps each, exact", "beam", 0.0),
        arm("tree", "best first, four steps each, exact", "tree", 0.0),
        arm("best-of-8-noisy", "best of 8, noisy check", "none", NOISE),
        arm("beam-noisy", "beam of 2, noisy", "beam", NOISE),
        arm("tree-noisy", "best first, noisy", "tree", NOISE),
    ),
    metrics=(ACCURACY, TOKENS),
    claims=(
        superior(ACCURACY, "beam", by=0.05),
        superior(ACCURACY, "beam-noisy", by=0.05, against="best-of-8-noisy"),
        ratio_between(TOKENS, "beam", 0.0, 1.1),
    ),
    budgets=budgets(terms=6, percent_right=65, questions=32),
    predicted=unseen,
    setup=students,
    means={
        "confirmed": "Worth it where half an answer can be judged: a chain of steps is repaired as "
        "it goes, for the tokens of eight answers that mostly go wrong.",
    },
)
