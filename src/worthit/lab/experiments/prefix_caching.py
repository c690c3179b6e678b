"""The time to the first token when four fifths of the prompt have been seen before.

Every turn asks with an ending of its own, so that what is shared is the beginning and no more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

from worthit.decode.engine import Request
from worthit.lab.claims import Metric, at_least, ratio_between
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
from worthit.lab.experiments._engine import ALIKE, engine, said, share_alike
from worthit.lab.experiments._smollm2 import foretold, loaded, row, served
from worthit.lab.metrics import SECONDS
from worthit.lab.predict import unseen
from worthit.techniques import technique
from worthit.techniques.cache.prefix_caching import ZHENG_2023

SHARED = 0.8
FIRST = replace(SECONDS, name="time to the first token")
FOUND = Metric(
    id="found", name="share of the prompt found in the cache", better="higher", margin=0.05
)


def prepare(context: Context, arm: Arm, seed: int) -> Callable[[], dict[str, float]]:
    """The call that is timed: one prompt to its first token, its beginning seen before."""
    n = context.budget.sizes["prompt"]
    text = row(context.shared.tokenizer, seed, 2 * n)[0].tolist()
    n_shared = int(SHARED * n)
    beginning, endings = text[:n_shared], text[n_shared:]
    served_by, cold = (
        engine(context, has_prefix_caching=has, max_batch_tokens=2 * n)
        for has in (arm.id == "cached", False)
    )

    def asked(at: int, max_tokens: int = 1) -> Request:
        ending = endings[at : at + n - n_shared]
        return Request(prompt=[*beginning, *ending], max_tokens=max_tokens, stop_ids=())

    served_by.generate([asked(0)])
    # The same beginning, found in the cache; another engine computes it.
    answers = [said(one.generate([asked(1, max_tokens=16)])) for one in (served_by, cold)]
    alike = share_alike(*answers)
    turns = itertools.count(2)

    def once() -> dict[str, float]:
        before = served_by.stats.n_prefix_found
        served_by.generate([asked(next(turns))])
        return {"found": (served_by.stats.n_prefix_found - before) / n, "alike": alike}

    return once


def predicted(setting: Setting) -> Iterator[Prediction]:
    """The time to the first token that cost foresees."""
    n = setting.budget.sizes["prompt"]
    before = served(prompt=n, output=1, shared_prefix=SHARED)
    after = technique("prefix-caching").apply(before)
    yield from foretold("seconds", "ttft_s", before, {"cached": after})
    yield from unseen(setting, "found", "alike")


QUICK = Budget(n_seeds=5, n_rounds=7, sizes={"prompt": 512}, seconds=14.0, setup_seconds=6.0)
EXPERIMENT = Experiment(
    id="prefix-caching",
    technique="prefix-caching",
    question="How much sooner does the first token come when most of the prompt is known?",
    expectation=Expectation(
        statement="Nearly in proportion to what is new: a fifth of the prompt, a fifth of the "
        "time; and the same tokens.",
        source=ZHENG_2023,
        refuted_if="with four fifths shared the first token takes more than a third of the time, "
        "or an answer changes",
        worth_it=True,
    ),
    how=Timing(prepare=prepare, n_warmup=1),
    matched=Matched(what=("nothing",), because="the same prompts, weights and engine"),
    arms=(
        Arm(id="plain", label="computed each time"),
        Arm(id="cached", label="the beginning is kept"),
    ),
    metrics=(FIRST, FOUND, ALIKE),
    claims=(
        ratio_between(FIRST, "cached", 0.0, 1 / 3),
        at_least(FOUND, "cached", 0.75),
        at_least(ALIKE, "cached", 0.99),
    ),
    budgets={
        "smoke": Budget(
            n_seeds=2, n_rounds=2, sizes={"prompt": 256}, seconds=4.0, setup_seconds=6.0
        ),
        "quick": QUICK,
        "full": Budget(
            n_seeds=10, n_rounds=15, sizes={"prompt": 2048}, seconds=150.0, setup_seconds=6.0
        ),
    },
    predicted=predicted,
    setup=loaded,
    means={
        "confirmed": "Wherever prompts begin alike, chats and agents above all: always, it changes "
        "nothing else.",
    },
)
