"""What stands in the prompt is guessed from it: on prompts to edit, to summarise, and to chat.

With a draft length that follows from what verifying costs here and from how each request fares, and
with one that is fixed: the first must not lose where nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator

from worthit.decode.speculative.drafter import Drafter
from worthit.decode.speculative.lookup import PromptLookup
from worthit.lab.claims import at_least, ratio_between
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
from worthit.techniques.decoding.prompt_lookup import SAXENA_2023

MOST = 7


def drafter(shared: Drafting, arm: Arm) -> tuple[Drafter | None, int]:
    """A look-up, or none."""
    return (None if arm.id == "plain" else PromptLookup()), MOST


def predicted(setting: Setting) -> Iterator[Prediction]:
    """The time a token that cost foresees where half of the answer is copied."""
    yield from _drafting.foreseen("prompt-lookup", setting, draft_len=MOST)


QUICK = Budget(n_seeds=6, n_rounds=1, sizes={"tokens": 32}, seconds=24.0, setup_seconds=8.0)
EXPERIMENT = Experiment(
    id="prompt-lookup",
    technique="prompt-lookup",
    question="How many passes does looking up save where the answer repeats the prompt, and what "
    "does it cost where it does not?",
    expectation=Expectation(
        statement="Twice as many tokens a pass on edits, more than one on summaries, the same "
        "text; and a chat that is not slowed down, since drafts stop where they do not pay.",
        source=SAXENA_2023,
        refuted_if="edits get fewer than 1.6 tokens a pass or take more than 0.8 times the time, "
        "chats more than 1.1 times, or a text changes",
        worth_it=True,
    ),
    how=Timing(prepare=preparing(drafter), per="tokens", n_warmup=0),
    matched=MATCHED,
    arms=(
        Arm(id="plain", label="one token a pass"),
        Arm(id="lookup", label="up to seven looked up", options={"is_adaptive": True}),
        Arm(id="fixed", label="always seven"),
    ),
    metrics=(
        TOKEN_TIME,
        per_pass("edit"),
        per_pass("summarise"),
        per_pass("chat"),
        time_of("edit"),
        time_of("summarise"),
        time_of("chat"),
        READINGS,
        ACCEPTED,
        ALIKE,
    ),
    claims=(
        ratio_between(per_pass("edit"), "lookup", 1.6),
        ratio_between(time_of("edit"), "lookup", 0.0, 0.8),
        ratio_between(time_of("chat"), "lookup", 0.0, 1.1),
        at_least(ALIKE, "lookup", 0.99),
    ),
    budgets=budgets(QUICK),
    predicted=predicted,
    setup=setup,
    means={
        "confirmed": "Editing, quoting and summarising: always; a chat loses nothing where the "
        "draft length follows what verifying costs.",
    },
)
