"""A narrow tutor drafts, the tutor verifies: batch 1, greedy, one user.

Speculation trades idle arithmetic for readings of the weights. The tutor's 2 MB of weights stand in
the processor's cache, and a pass costs the starting of its kernels, for the draft as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from worthit.cost.params import count_params
from worthit.decode.speculative.draft_model import DraftModel
from worthit.decode.speculative.drafter import Plain
from worthit.decode.speculative.loop import Tally, speculate
from worthit.lab import models
from worthit.lab.claims import Metric, at_least, not_better
from worthit.lab.context import Context, Setting
from worthit.lab.experiment import (
    Arm,
    Budget,
    Expectation,
    Experiment,
    Matched,
    Prediction,
    Timing,
)
from worthit.lab.experiments._tutor import EXPECTED
from worthit.lab.metrics import SECONDS
from worthit.lab.predict import case_of, ratio
from worthit.lab.tasks import task
from worthit.lab.tasks.grammar_tutor import END, GrammarTutor, encode
from worthit.lab.training import ticking
from worthit.nn import Decoder
from worthit.spec.case import Serving
from worthit.techniques import technique
from worthit.train import Recipe, seeded, train_many

TOKEN_TIME = replace(SECONDS, name="time a token", unit="s/token")
ACCEPTED = Metric(
    id="accepted", name="share of drafted tokens accepted", better="higher", margin=0.05
)


@dataclass(frozen=True)
class Answers:
    """What was said, in how many passes of the target, and how the drafts fared."""

    ids: list[list[int]]
    n_passes: int
    n_drafted: int
    n_accepted: int

    @property
    def n_tokens(self) -> int:
        """Tokens said, the ending one included."""
        return sum(len(ids) for ids in self.ids)


def answer(
    target: Decoder, draft: Decoder | None, prompts: Sequence[list[int]], draft_len: int
) -> Answers:
    """Greedy answers up to `END`, prompt by prompt; without a draft by the same loop."""
    drafter = Plain() if draft is None else DraftModel(draft, target.spec.vocab_size)
    tally, said = Tally(), []
    for prompt in prompts:
        tokens = speculate(
            target,
            prompt,
            drafter,
            max_tokens=target.spec.context_len - len(prompt),
            most=max(draft_len, 1),
            tally=tally,
        )
        ids: list[int] = []
        for token in tokens:
            ids.append(token)
            if token == END:
                break
        said.append(ids)
    return Answers(said, tally.n_passes, tally.n_drafted, tally.n_accepted)


def narrow(budget: Budget) -> Budget:
    """The budget with the draft's width."""
    return replace(budget, sizes={**budget.sizes, "d_model": budget.sizes["draft_d_model"]})


def trained_pairs(context: Context) -> dict[int, tuple[Decoder, Decoder]]:
    """A target and a draft for each seed, trained alike."""
    budget, data = context.budget, task("grammar-tutor")
    recipe = Recipe(
        n_steps=budget.n_steps,
        batch_size=budget.batch_size,
        lr=budget.learning_rates[0],
        warmup_steps=budget.n_steps // 10,
        eval_every=0,
    )
    pairs = []
    for name, size in (("target", budget), ("draft", narrow(budget))):
        spec = models.tutor(size)
        folder: Path = context.folder / name
        runs = train_many(
            seeded(spec),
            data,
            recipe,
            context.seeds,
            folder=folder,
            progress=ticking(context.tick, len(context.seeds)),
        )
        pairs.append([run.into(seeded(spec)(run.seed)) for run in runs])
    return dict(zip(context.seeds, zip(*pairs, strict=True), strict=True))


def questions(seed: int, n: int) -> list[list[int]]:
    """`n` prompts of the test split, drawn by `seed`."""
    data = task("grammar-tutor")
    assert isinstance(data, GrammarTutor)
    examples = data.examples["test"]
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return [encode(examples[i].prompt) for i in order[:n].tolist()]


def prepare(context: Context, arm: Arm, seed: int) -> Callable[[], dict[str, float]]:
    """The call that is timed: answers to the same questions for every arm."""
    target, draft = context.shared[seed]
    n = arm.options["draft_len"]
    prompts = questions(seed, context.budget.sizes["prompts"])
    plain = answer(target, None, prompts, 0).ids

    def once() -> dict[str, float]:
        found = answer(target, draft if n else None, prompts, n)
        assert found.ids == plain, "speculation must not change the text"
        measured = {"tokens": float(found.n_tokens), "passes": float(found.n_passes)}
        # Of none drafted none are accepted.
        measured["accepted"] = found.n_accepted / max(found.n_drafted, 1)
        measured["tokens_per_pass"] = found.n_tokens / found.n_passes
        return measured

    return once


def predicted(setting: Setting) -> list[Prediction]:
    """What cost says of a draft of that size, with the acceptance that its papers report."""
    target, draft = models.tutor(setting.budget), models.tutor(narrow(setting.budget))
    scale = count_params(draft).total / count_params(target).total
    base = case_of(target, Serving(prompt=20, output=12, concurrency=1))
    found = []
    for arm in setting.experiment.variants:
        case = technique("speculative-decoding").apply(
            base, draft_len=arm.options["draft_len"], draft_scale=scale
        )
        middle, low, high = ratio(base, case, "s_per_token")
        found.append(
            Prediction(
                metric="seconds",
                arm=arm.id,
                value=middle,
                low=low,
                high=high,
                basis=f"cost on {base.hardware.device.name}, published acceptance",
            )
        )
    return found


QUICK = Budget(
    n_seeds=5,
    n_steps=400,
    batch_size=32,
    learning_rates=(3e-3,),
    n_rounds=9,
    sizes={"draft_d_model": 64, "prompts": 24},
    seconds=6.0,
    setup_seconds=60.0,
)
EXPERIMENT = Experiment(
    id="speculative-decoding",
    technique="speculative-decoding",
    question="Does a small draft make the grammar tutor answer sooner?",
    expectation=Expectation(
        statement="Net-negative for a single user at so little compute a token: a pass of the "
        "draft costs nearly as much as one of the target.",
        source=EXPECTED,
        refuted_if="a token takes at least 10 % less time with drafts of two or four tokens",
        worth_it=False,
    ),
    how=Timing(prepare=prepare, per="tokens", n_warmup=1),
    matched=Matched(
        what=("nothing",),
        because="the text is the same to the token, checked at every turn; what differs is how "
        "many passes it takes",
    ),
    arms=(
        Arm(id="plain", label="one token a pass", options={"draft_len": 0}),
        Arm(id="draft-2", label="two drafted", options={"draft_len": 2}),
        Arm(id="draft-4", label="four drafted", options={"draft_len": 4}),
    ),
    metrics=(TOKEN_TIME, ACCEPTED),
    claims=(
        not_better(TOKEN_TIME, "draft-2"),
        not_better(TOKEN_TIME, "draft-4"),
        # Without it a loss would be the draft's fault, not the method's.
        at_least(ACCEPTED, "draft-2", 0.3),
    ),
    budgets={
        "smoke": replace(
            QUICK,
            n_seeds=3,
            n_steps=120,
            n_rounds=5,
            sizes={"d_model": 128, "draft_d_model": 32, "prompts": 8},
            seconds=1.5,
            setup_seconds=10.0,
        ),
        "quick": QUICK,
        "full": replace(QUICK, n_seeds=10, n_steps=1500, n_rounds=15, setup_seconds=400.0),
    },
    predicted=predicted,
    setup=trained_pairs,
    means={
        "confirmed": "Each drafted token costs a pass that is no cheaper than the target's own: "
        "never, for one user of a model this small.",
    },
)
