"""Critique, revise, fine-tune, then preferences by the same principle, on verb forms.

The critic is planted: it knows the rule and applies it nine times in ten. A tutor cannot criticise
in words; what is measured is what the stages do with such a critic, not whether a model is one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from worthit.align import DPO, Demonstration, Pair
from worthit.align.constitution import Message, criticise, parse_constitution
from worthit.align.sample import sample
from worthit.lab.claims import Metric, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Measures
from worthit.lab.experiments._preferences import (
    BUDGETS,
    CHOSEN,
    FINE_TUNING,
    PREFERENCES,
    RANKED,
    RIGHT,
    SEPARATE,
    examples,
    half_learned,
    ids,
    on_pairs,
    on_shown,
    predicted,
    read,
    start,
    steps,
)
from worthit.lab.tasks.grammar_tutor import END, check, decode
from worthit.nn import Decoder
from worthit.techniques.alignment._preferences import BAI_2022

CONSTITUTION = """\
Critique: Is this the form that was asked for?
Revise: Give the form that was asked for.
Prefer: the form that was asked for
"""
CRITIC = 0.9
LONGEST = 20
VIOLATIONS = Metric(id="violations", name="sampled answers that break the rule", margin=0.05)


class Critic:
    """Answers as the tutor, and criticises and revises by rule, as often as it is right."""

    def __init__(self, model: Decoder, seed: int) -> None:
        self.model, self.drawn = model, random.Random(seed)
        self.answers = {e.prompt: e.answer for e in examples("train")}

    def reply(
        self, conversations: Sequence[Sequence[Message]], *, max_tokens: int, seed: int
    ) -> list[str]:
        """One turn of all conversations, which stand at the same place."""
        if len(conversations[0]) == 1:
            return said(self.model, [c[0]["content"] for c in conversations], seed)
        if len(conversations[0]) == 3:
            return [self._verdict(c[0]["content"], c[1]["content"]) for c in conversations]
        return [
            self.answers[c[0]["content"]] if c[3]["content"] == "no" else c[1]["content"]
            for c in conversations
        ]

    def _verdict(self, prompt: str, answer: str) -> str:
        is_right = check(prompt, answer)
        return "yes" if is_right == (self.drawn.random() < CRITIC) else "no"


def said(model: Decoder, prompts: Sequence[str], seed: int) -> list[str]:
    """The tutor's answers, sampled."""
    found = sample(model, [ids(p) for p in prompts], max_tokens=LONGEST, stop_ids=(END,), seed=seed)
    return [decode(answer) for answer in found]


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Fine-tune on own answers, on their revisions, or on these and then by preferences."""
    model, reference = start(context, seed), start(context, seed)
    prompts = [e.prompt for e in examples("train")]
    revised = criticise(
        Critic(start(context, seed), seed),
        prompts,
        parse_constitution(CONSTITUTION),
        seed=seed,
    )
    shown = [
        Demonstration(
            prompt=ids(r.prompt),
            completion=ids(r.answer if arm.id == "own" else r.revision, is_answer=True),
        )
        for r in revised
    ]
    on_shown(model, shown, steps(context, FINE_TUNING), seed)
    if arm.id == "preferences":
        one, two = (said(model, prompts, seed * 2 + i) for i in (7, 8))
        pairs = preferred(prompts, one, two, seed)
        if pairs:
            few = context.budget.sizes["updates"] // 2
            on_pairs(model, pairs, DPO(), steps(context, PREFERENCES, n_steps=few), seed)
    asked = [e.prompt for e in examples("held-out")]
    answers = said(model, asked, seed + 99)
    broken = sum(not check(p, a) for p, a in zip(asked, answers, strict=True)) / len(asked)
    return {**read(model, reference), "violations": broken}


def preferred(
    prompts: Sequence[str], one: Sequence[str], two: Sequence[str], seed: int
) -> list[Pair]:
    """What the critic prefers of two answers, where one of them is right."""
    drawn = random.Random(seed)
    found = []
    for prompt, a, b in zip(prompts, one, two, strict=True):
        if check(prompt, a) == check(prompt, b):
            continue
        better, worse = (a, b) if check(prompt, a) else (b, a)
        if drawn.random() >= CRITIC:
            better, worse = worse, better
        found.append(
            Pair(
                prompt=ids(prompt),
                chosen=ids(better, is_answer=True),
                rejected=ids(worse, is_answer=True),
            )
        )
    return found


EXPERIMENT = Experiment(
    id="constitutional-ai",
    technique="constitutional-ai",
    question="What do revisions gain, and what do preferences by the same principle add?",
    expectation=Expectation(
        statement="Fine-tuned on revisions, the model breaks the principle less than on its own "
        "answers; preferences on top lower it again.",
        source=BAI_2022,
        refuted_if="revisions do not lower violations by 5 points, or preferences not any further",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=SEPARATE,
    arms=(
        Arm(id="own", label="own answers"),
        Arm(id="revised", label="their revisions"),
        Arm(id="preferences", label="revisions, then preferences"),
    ),
    metrics=(VIOLATIONS, RIGHT, RANKED, CHOSEN),
    claims=(
        superior(VIOLATIONS, "revised"),
        superior(VIOLATIONS, "preferences", by=0.0, against="revised"),
    ),
    budgets=BUDGETS,
    predicted=predicted("violations", "right"),
    setup=half_learned,
)
