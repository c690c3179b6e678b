"""Votes over worked sums, whose slips scatter, and over verb forms, whose errors repeat.

The same number of samples votes twice: on sums that a small model works out step by step, and on
irregular and regular forms of the grammar tutor, which are said at once. A vote removes errors that
differ from sample to sample, and no others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from worthit.decode.engine import Engine
from worthit.lab import models
from worthit.lab.claims import Metric, not_better, ratio_between, superior
from worthit.lab.context import Context, Setting, fitted
from worthit.lab.experiment import (
    Arm,
    Budget,
    Custom,
    Expectation,
    Experiment,
    Matched,
    Measures,
    Prediction,
)
from worthit.lab.experiments._reasoning import (
    ACCURACY,
    CONFIG,
    TOKENS,
    Student,
    among_samples,
    budgets,
    measures,
    samples_cost,
    students,
)
from worthit.lab.reasoning import tutor
from worthit.lab.tasks import grammar_tutor, task
from worthit.nn import Decoder
from worthit.reason import Generator, once
from worthit.techniques.reasoning._answers import WANG_2022
from worthit.train import Recipe, seeded, train_many

VOTES = "self-consistency"
FORMS = Metric(id="forms", name="verb forms answered right", better="higher", margin=0.05)


@dataclass
class Pair:
    """The students of one seed: of sums, and of verb forms."""

    sums: Student
    forms: Student


def pairs(context: Context) -> dict[int, Pair]:
    """Both students of every seed."""
    of_forms = tutors(context)
    return {seed: Pair(one, of_forms[seed]) for seed, one in students(context).items()}


def tutors(context: Context) -> dict[int, Student]:
    """Grammar tutors, trained for some steps."""
    sizes = context.budget.sizes
    data = task("grammar-tutor")
    spec = fitted(models.tutor(replace(context.budget, sizes={"d_model": 96})), data)
    n_steps = sizes["tutor_steps"]
    recipe = Recipe(
        n_steps=n_steps, batch_size=32, lr=3e-3, warmup_steps=n_steps // 10, eval_every=0
    )
    runs = train_many(seeded(spec), data, recipe, context.seeds, folder=context.folder / "tutor")
    found = {}
    for run in runs:
        model: Any = run.into(seeded(spec)(run.seed))
        assert isinstance(model, Decoder)
        engine = Engine(model.requires_grad_(False), None, CONFIG)
        generator = Generator(engine, grammar_tutor.decode, (grammar_tutor.END,))
        found[run.seed] = Student(generator, tutor(sizes["questions"], seed=run.seed))
    return found


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Accuracies on both tasks, and tokens on sums."""
    both, k = context.shared[seed], arm.options["votes"]
    n = context.budget.sizes["samples"]
    found = []
    for student in (both.sums, both.forms):
        kind = student.kind
        found.append(
            among_samples(student, VOTES, k, n, seed)
            if k
            else measures(
                once(
                    student.generator,
                    kind.questions,
                    read_answer=kind.read_answer,
                    max_tokens=kind.max_tokens,
                )
            )
        )
    return {**found[0], "forms": found[1]["accuracy"]}


def predicted(setting: Setting) -> list[Prediction]:
    """Tokens are counted; what votes are worth cost cannot see."""
    votes = {arm.id: float(arm.options["votes"]) for arm in setting.experiment.arms}
    made = list(samples_cost(votes.get)(setting))
    return [*made, *(replace(p, metric="forms") for p in made if p.metric == "accuracy")]


def _budgets() -> dict[str, Budget]:
    made = budgets(tutor_steps=200)
    smoke = made["smoke"]
    return {**made, "smoke": replace(smoke, sizes={**smoke.sizes, "tutor_steps": 10})}


EXPERIMENT = Experiment(
    id="self-consistency",
    technique="self-consistency",
    question="When do votes of several answers beat one, with nothing to check them by?",
    expectation=Expectation(
        statement="Chains of thought that differ gain by a vote, 4 to 18 points in the paper; "
        "answers without a chain, whose errors are the model's own, do not.",
        source=replace(WANG_2022, where="abstract; section 3.3 on prompts without a chain"),
        refuted_if="eight votes are not five points above one greedy answer on sums, or are five "
        "points above it on verb forms",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",),
        because="votes of four are votes over the same samples as votes of eight, and a greedy "
        "answer is one more; the question is what the tokens buy",
    ),
    arms=(
        Arm(id="once", label="one greedy answer", options={"votes": 0}),
        Arm(id="four", label="four votes", options={"votes": 4}),
        Arm(id="eight", label="eight votes", options={"votes": 8}),
    ),
    metrics=(ACCURACY, FORMS, TOKENS),
    claims=(
        superior(ACCURACY, "eight", by=0.05),
        not_better(FORMS, "eight", by=0.05),
        ratio_between(TOKENS, "eight", 7.2, 8.8),
    ),
    budgets=_budgets(),
    predicted=predicted,
    setup=pairs,
    means={
        "refuted": "Not here: there is one way to work such a sum out, greedy decoding takes the "
        "commonest step each time, and samples at temperature 1 err oftener than a vote of eight "
        "makes good. The paper's gain is of questions with several ways to one answer.",
        "confirmed": "Worth it for chains of thought whose slips differ; useless for errors that a "
        "model makes every time.",
    },
)
