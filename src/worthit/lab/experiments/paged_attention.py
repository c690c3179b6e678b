"""As much cache memory, handed out whole or in pages of 16 tokens: how many fit side by side.

Without pages every sequence reserves room for the longest answer that is allowed. Requests whose
answers are mostly short then hold memory that nothing will be written to, and others wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from worthit.lab.claims import Metric, at_least, at_most, superior
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
from worthit.lab.experiments._engine import (
    ALIKE,
    STEPS,
    TOKEN_TIME,
    alone,
    engine,
    laid_out,
    requests,
    share_alike,
)
from worthit.lab.experiments._smollm2 import foretold, served
from worthit.lab.predict import unseen
from worthit.techniques import technique
from worthit.techniques.cache._sources import KWON_2023

PAGE = 16
WASTE = Metric(id="waste", name="share of reserved memory with nothing in it", margin=0.05)


def prepare(context: Context, arm: Arm, seed: int) -> Callable[[], dict[str, float]]:
    """The call that is timed: all requests, with memory for so many whole sequences."""
    sizes = context.budget.sizes
    longest = -(-(sizes["prompt"] + sizes["output"]) // PAGE) * PAGE
    block = PAGE if arm.id == "pages" else longest
    wanted = requests(context, seed)
    expected = alone(context, seed)

    def once() -> dict[str, float]:
        served_by = engine(context, block_tokens=block, n_blocks=sizes["room"] * longest // block)
        names = [served_by.add(request) for request in wanted]
        answers: dict[str, list[int]] = {name: [] for name in names}
        written = held = 0
        while served_by.has_work:
            for output in served_by.step():
                answers[output.id] += output.ids
            written += sum(s.n_computed for s in served_by.scheduler.running)
            held += served_by.memory.n_held * block
        return {
            "tokens": float(served_by.stats.n_generation_tokens),
            "steps": float(served_by.stats.n_steps),
            "waste": 1.0 - written / held,
            "alike": share_alike(list(answers.values()), expected),
        }

    return once


def predicted(setting: Setting) -> Iterator[Prediction]:
    """What cost says of as many tokens with pages, at this mixture of lengths."""
    sizes = setting.budget.sizes
    before = served(
        prompt=sizes["prompt"],
        output=sizes["output"] // 2,
        users=sizes["requests"],
        output_spread=0.8,
    )
    after = technique("paged-attention").apply(before, page_tokens=PAGE)
    yield from foretold("seconds", "s_per_token", before, {"pages": after})
    yield from unseen(setting, "waste", "steps", "alike")


SIZES = {"prompt": 24, "output": 48, "requests": 10, "room": 2}
QUICK = Budget(n_seeds=5, n_rounds=2, sizes=SIZES, seconds=15.0, setup_seconds=8.0)
EXPERIMENT = Experiment(
    id="paged-attention",
    technique="paged-attention",
    question="What do pages buy where the cache's memory is what limits how many are served?",
    expectation=Expectation(
        statement="Reserving the longest answer leaves most of the memory empty; pages leave next "
        "to nothing empty, more sequences run side by side, and no token changes.",
        source=KWON_2023,
        refuted_if="pages leave a fifth of their memory empty, whole reservations leave less than "
        "two fifths, or the same requests take as many passes",
        worth_it=True,
    ),
    how=Timing(prepare=prepare, per="tokens", n_warmup=1),
    matched=Matched(
        what=("nothing",), because="the same requests, weights, and bytes of cache memory"
    ),
    arms=(
        Arm(id="whole", label="reserved whole"),
        Arm(id="pages", label="pages of 16"),
    ),
    metrics=(TOKEN_TIME, STEPS, WASTE, ALIKE),
    claims=(
        at_least(WASTE, "whole", 0.4),
        at_most(WASTE, "pages", 0.2),
        superior(STEPS, "pages", by=0.2),
        at_least(ALIKE, "pages", 0.99),
        superior(TOKEN_TIME, "pages", by=0.0),
    ),
    budgets={
        "smoke": Budget(
            n_seeds=2,
            n_rounds=1,
            sizes={**SIZES, "output": 24, "requests": 4, "room": 1},
            seconds=8.0,
            setup_seconds=6.0,
        ),
        "quick": QUICK,
        "full": Budget(
            n_seeds=8,
            n_rounds=5,
            sizes={"prompt": 128, "output": 256, "requests": 32, "room": 4},
            seconds=400.0,
            setup_seconds=6.0,
        ),
    },
    predicted=predicted,
    setup=laid_out,
    means={
        "confirmed": "Where memory limits the batch and answers differ in length, pages are what "
        "fills it.",
    },
)
