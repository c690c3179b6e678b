"""A long prompt arrives while others are being answered: how long they wait for their next token.

Three answers run; a prompt of several hundred tokens comes. It is computed in one step, or in
pieces that share steps with the three.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from worthit.decode.engine import Request
from worthit.lab.claims import Metric, no_worse, superior
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
from worthit.lab.experiments._engine import engine
from worthit.lab.experiments._smollm2 import foretold, loaded, row, served
from worthit.lab.metrics import SECONDS
from worthit.techniques import technique
from worthit.techniques.cache._sources import AGRAWAL_2024

RUNNING = 3
GAP = Metric(id="gap", name="longest gap between two tokens", unit="s", scale="ratio", margin=0.1)
FIRST = Metric(
    id="first", name="time to the newcomer's first token", unit="s", scale="ratio", margin=0.1
)


def prepare(context: Context, arm: Arm, seed: int) -> Callable[[], dict[str, float]]:
    """The call that is timed: three short prompts, a long one, until the long one is answered."""
    n = context.budget.sizes["prompt"]
    text = row(context.shared.tokenizer, seed, n + RUNNING * 16)[0].tolist()
    long, rest = text[:n], text[n:]
    chunk = context.budget.sizes["chunk"] if arm.id == "pieces" else n + RUNNING + 1

    def once() -> dict[str, float]:
        served_by = engine(context, max_batch_tokens=chunk, max_sequences=RUNNING + 1)
        for i in range(RUNNING):
            prompt = rest[i * 16 : (i + 1) * 16]
            served_by.add(Request(prompt=prompt, max_tokens=400, stop_ids=()))
        for _ in range(4):
            served_by.step()
        newcomer = served_by.add(Request(prompt=long, max_tokens=1, stop_ids=()))
        started, gap, has_come = time.perf_counter(), 0.0, False
        last = started
        while not has_come:
            outputs = served_by.step()
            now = time.perf_counter()
            gap, last = max(gap, now - last), now
            has_come = any(output.id == newcomer for output in outputs)
        return {"gap": gap, "first": last - started}

    return once


def predicted(setting: Setting) -> Iterator[Prediction]:
    """The longest gap that cost foresees."""
    sizes = setting.budget.sizes
    before = served(prompt=sizes["prompt"], output=32, users=RUNNING + 1)
    after = technique("chunked-prefill").apply(before, chunk=sizes["chunk"])
    yield from foretold("gap", "stall_s", before, {"pieces": after})
    yield from foretold("first", "ttft_s", before, {"pieces": after})


QUICK = Budget(
    n_seeds=3, n_rounds=5, sizes={"prompt": 512, "chunk": 64}, seconds=20.0, setup_seconds=6.0
)
EXPERIMENT = Experiment(
    id="chunked-prefill",
    technique="chunked-prefill",
    question="How long do running answers stand still when a long prompt arrives?",
    expectation=Expectation(
        statement="The longest gap falls to that of one piece, and the newcomer's first token "
        "comes somewhat later.",
        source=AGRAWAL_2024,
        refuted_if="the gap does not fall to a half, or the newcomer waits half as long again",
        worth_it=True,
    ),
    how=Timing(prepare=prepare, n_warmup=1),
    matched=Matched(what=("nothing",), because="the same prompts and weights, in the same order"),
    arms=(
        Arm(id="whole", label="the prompt in one step"),
        Arm(id="pieces", label="in pieces"),
    ),
    metrics=(GAP, FIRST, SECONDS),
    claims=(
        superior(GAP, "pieces", by=0.5),
        no_worse(FIRST, "pieces", margin=0.5),
    ),
    budgets={
        "smoke": Budget(
            n_seeds=2,
            n_rounds=2,
            sizes={"prompt": 256, "chunk": 64},
            seconds=5.0,
            setup_seconds=6.0,
        ),
        "quick": QUICK,
        "full": Budget(
            n_seeds=8,
            n_rounds=9,
            sizes={"prompt": 2048, "chunk": 128},
            seconds=200.0,
            setup_seconds=6.0,
        ),
    },
    predicted=predicted,
    setup=loaded,
    means={
        "confirmed": "For whoever reads along it is the difference between a stutter and none; the "
        "newcomer pays a little.",
    },
)
