"""A layer that reads a small model's features, trained for minutes on what the model says itself.

One step of the drafter reads a twelfth of what a pass of the model reads, and a pass over five
tokens costs hardly more than one in bf16 on a CPU: what is left to ask is how much such a layer
foresees after so little training, and whether a tree foresees more than it costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from worthit.lab.claims import at_least, ratio_between
from worthit.lab.context import Context, Setting
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Prediction, Timing
from worthit.lab.experiments._draft_heads import MATCHED, METRICS, WithHeads, drafter, setup_of
from worthit.lab.experiments._drafting import foreseen, per_pass, preparing, time_of
from worthit.techniques.decoding.eagle import LI_2025

MOST = 4


def setup(context: Context) -> WithHeads:
    """The model and its EAGLE head."""
    return setup_of(context, "eagle")


def predicted(setting: Setting) -> Iterator[Prediction]:
    """The time a token that cost foresees, with the acceptance of published drafters."""
    yield from foreseen("eagle", setting, draft_len=MOST, draft_vocab=8192)


QUICK = Budget(
    n_seeds=5,
    n_rounds=1,
    sizes={"tokens": 32, "heads_tokens": 24_576, "heads_rows": 32, "heads_length": 192},
    seconds=3.0,
    setup_seconds=150.0,
)
EXPERIMENT = Experiment(
    id="eagle",
    technique="eagle",
    question="How many passes does an EAGLE head save that was trained for minutes on a CPU, and "
    "is any of it left in the time?",
    expectation=Expectation(
        statement="Published drafters, trained for days, say three tokens or more a pass. Minutes "
        "give a small part of that: 1.3 tokens a pass of a chat, and a chat in 5 % less time.",
        source=LI_2025,
        refuted_if="a chat gets fewer than 1.3 tokens a pass, or takes more than 0.95 times the "
        "time with a chain",
        worth_it=True,
    ),
    how=Timing(prepare=preparing(drafter), per="tokens", n_warmup=0),
    matched=MATCHED,
    arms=(
        Arm(id="plain", label="one token a pass"),
        Arm(id="chain", label="chains of up to four", options={"most": MOST}),
        Arm(id="tree", label="trees of up to eight", options={"most": 8, "is_tree": True}),
    ),
    metrics=METRICS,
    claims=(
        at_least(per_pass("chat"), "chain", 1.3),
        ratio_between(time_of("chat"), "chain", 0.0, 0.95),
    ),
    budgets={
        "smoke": replace(
            QUICK,
            n_seeds=2,
            sizes={"tokens": 8, "heads_tokens": 256, "heads_rows": 4, "heads_length": 32},
            seconds=2.0,
            setup_seconds=10.0,
        ),
        "quick": QUICK,
        "full": replace(
            QUICK,
            n_rounds=5,
            sizes={"tokens": 96, "heads_tokens": 400_000, "heads_rows": 48, "heads_length": 256},
            seconds=60.0,
            setup_seconds=1800.0,
        ),
    },
    predicted=predicted,
    setup=setup,
    means={
        "confirmed": "Minutes on a CPU are enough for a head that pays for itself; more text makes "
        "it better.",
        "refuted": "A layer that learned for minutes foresees one token in ten, and drafting with "
        "it costs more than that saves.",
    },
)
