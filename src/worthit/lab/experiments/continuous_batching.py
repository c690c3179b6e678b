"""Requests whose answers differ in length, in batches that end together or one by one.

Four places. A static batch waits for its longest answer before the next four begin; continuous
batching gives a free place to whoever waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from worthit.lab.claims import at_least, superior
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
    said,
    share_alike,
)
from worthit.lab.experiments._smollm2 import foretold, served
from worthit.lab.predict import unseen
from worthit.techniques import technique
from worthit.techniques.cache._sources import YU_2022

PLACES = 4


def prepare(context: Context, arm: Arm, seed: int) -> Callable[[], dict[str, float]]:
    """The call that is timed: the same requests, all at once or four by four."""
    wanted = requests(context, seed)
    expected = alone(context, seed)
    at_once = len(wanted) if arm.id == "continuous" else PLACES
    groups = [wanted[i : i + at_once] for i in range(0, len(wanted), at_once)]

    def once() -> dict[str, float]:
        served_by = engine(context, max_sequences=PLACES)
        found = [ids for group in groups for ids in said(served_by.generate(group))]
        return {
            "tokens": float(served_by.stats.n_generation_tokens),
            "steps": float(served_by.stats.n_steps),
            "alike": share_alike(found, expected),
        }

    return once


def predicted(setting: Setting) -> Iterator[Prediction]:
    """What cost says of a token, with answers that spread so."""
    sizes = setting.budget.sizes
    before = served(
        prompt=sizes["prompt"], output=sizes["output"] // 2, users=PLACES, output_spread=0.8
    )
    after = technique("continuous-batching").apply(before)
    yield from foretold("seconds", "s_per_token", before, {"continuous": after})
    yield from unseen(setting, "steps", "alike")


SIZES = {"prompt": 24, "output": 48, "requests": 12}
QUICK = Budget(n_seeds=5, n_rounds=2, sizes=SIZES, seconds=18.0, setup_seconds=8.0)
EXPERIMENT = Experiment(
    id="continuous-batching",
    technique="continuous-batching",
    question="What does it cost to let a batch wait for its longest answer?",
    expectation=Expectation(
        statement="Many times fewer passes, and more tokens a second, the more answers differ in "
        "length; no answer changes.",
        source=YU_2022,
        refuted_if="the same requests take more than four fifths of the passes, a token as long, "
        "or an answer differs from the one given alone",
        worth_it=True,
    ),
    how=Timing(prepare=prepare, per="tokens", n_warmup=1),
    matched=Matched(what=("nothing",), because="the same requests and weights, four at a time"),
    arms=(
        Arm(id="static", label="batches that end together"),
        Arm(id="continuous", label="a free place is taken at once"),
    ),
    metrics=(TOKEN_TIME, STEPS, ALIKE),
    claims=(
        superior(STEPS, "continuous", by=0.2),
        superior(TOKEN_TIME, "continuous", by=0.0),
        at_least(ALIKE, "continuous", 0.99),
    ),
    budgets={
        "smoke": Budget(
            n_seeds=2,
            n_rounds=1,
            sizes={**SIZES, "output": 24, "requests": 8},
            seconds=8.0,
            setup_seconds=6.0,
        ),
        "quick": QUICK,
        "full": Budget(
            n_seeds=8,
            n_rounds=5,
            sizes={"prompt": 128, "output": 256, "requests": 32},
            seconds=400.0,
            setup_seconds=6.0,
        ),
    },
    predicted=predicted,
    setup=laid_out,
    means={
        "confirmed": "Wherever answers differ in length and more than one is served: always, and "
        "only an engine can do it.",
    },
)
