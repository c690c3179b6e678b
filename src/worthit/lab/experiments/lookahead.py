"""The model guesses its own future in a window: fewer passes, each over thirty tokens more.

On a CPU the arithmetic of those tokens is not free, which is what the method lives on.
"""

from __future__ import annotations

from collections.abc import Iterator

from worthit.decode.speculative.drafter import Drafter
from worthit.decode.speculative.lookahead import Lookahead
from worthit.lab.claims import at_least, not_better, ratio_between
from worthit.lab.context import Setting
from worthit.lab.experiment import (
    Arm,
    Budget,
    Expectation,
    Experiment,
    Prediction,
    Timing,
)
from worthit.lab.experiments import _drafting
from worthit.lab.experiments._drafting import (
    ACCEPTED,
    ALIKE,
    MATCHED,
    READINGS,
    TOKEN_TIME,
    Drafting,
    budgets,
    per_pass,
    preparing,
    setup,
    time_of,
)
from worthit.techniques.decoding.lookahead import FU_2024

WIDTH, N_GRAM, N_VERIFIED = 5, 4, 5


def drafter(shared: Drafting, arm: Arm) -> tuple[Drafter | None, int]:
    """A window and its n-grams, or none."""
    if arm.id == "plain":
        return None, 1
    ahead = Lookahead(WIDTH, N_GRAM, N_VERIFIED)
    return ahead, ahead.n_nodes


def predicted(setting: Setting) -> Iterator[Prediction]:
    """The time a token that cost foresees for a window of this size."""
    yield from _drafting.foreseen(
        "lookahead", setting, ngram=N_GRAM, window=WIDTH, guesses=N_VERIFIED
    )


QUICK = Budget(n_seeds=4, n_rounds=1, sizes={"tokens": 32}, seconds=40.0, setup_seconds=8.0)
EXPERIMENT = Experiment(
    id="lookahead",
    technique="lookahead",
    question="Does guessing the future in parallel pay for a user on a CPU?",
    expectation=Expectation(
        statement="It says more than one token a pass, and takes longer: a pass over thirty tokens "
        "costs two to four of one here, and the method assumes that arithmetic is idle.",
        source=FU_2024,
        refuted_if="edits take at least 5 % less time, or get no more than 1.2 tokens a pass",
        worth_it=False,
    ),
    how=Timing(prepare=preparing(drafter), per="tokens", n_warmup=0),
    matched=MATCHED,
    arms=(
        Arm(id="plain", label="one token a pass"),
        Arm(id="lookahead", label="a window of five columns, n-grams of four"),
    ),
    metrics=(
        TOKEN_TIME,
        per_pass("edit"),
        per_pass("summarise"),
        per_pass("chat"),
        time_of("edit"),
        time_of("chat"),
        READINGS,
        ACCEPTED,
        ALIKE,
    ),
    claims=(
        ratio_between(per_pass("edit"), "lookahead", 1.2),
        not_better(time_of("edit"), "lookahead"),
        not_better(time_of("chat"), "lookahead"),
        at_least(ALIKE, "lookahead", 0.99),
    ),
    budgets=budgets(QUICK),
    predicted=predicted,
    setup=setup,
    means={
        "confirmed": "Not on a CPU: passes are saved, time is not. It is for accelerators with "
        "arithmetic to spare and a single user.",
    },
)
