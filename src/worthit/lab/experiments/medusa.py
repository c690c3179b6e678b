"""Heads that guess several tokens at once, trained for minutes on what a small model says itself.

All of them read the same state, in one product, so that guessing costs next to nothing; but the
second head does not know what the first one guessed. A tree hedges, and pays with wider passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from worthit.lab.claims import at_least, ratio_between
from worthit.lab.context import Context, Setting
from worthit.lab.experiment import Arm, Expectation, Experiment, Prediction, Timing
from worthit.lab.experiments._draft_heads import MATCHED, METRICS, WithHeads, drafter, setup_of
from worthit.lab.experiments._drafting import foreseen, per_pass, preparing, time_of
from worthit.lab.experiments.eagle import EXPERIMENT as EAGLE
from worthit.lab.experiments.eagle import QUICK
from worthit.techniques.decoding.medusa import CAI_2024

N_HEADS = 3


def setup(context: Context) -> WithHeads:
    """The model and its Medusa heads."""
    return setup_of(context, "medusa")


def predicted(setting: Setting) -> Iterator[Prediction]:
    """The time a token that cost foresees, with the acceptance of published heads."""
    yield from foreseen("medusa", setting, n_heads=N_HEADS, tree=8)


EXPERIMENT = Experiment(
    id="medusa",
    technique="medusa",
    question="How many passes do Medusa heads save that were trained for minutes on a CPU, and is "
    "any of it left in the time?",
    expectation=Expectation(
        statement="Heads on a frozen 7B model say 2.5 tokens a pass after hours. Minutes on a "
        "small one give less, and less than EAGLE: 1.2 tokens a pass of a chat with a chain, and a "
        "chat in 5 % less time.",
        source=CAI_2024,
        refuted_if="a chat gets fewer than 1.2 tokens a pass, or takes more than 0.95 times the "
        "time with a chain",
        worth_it=True,
    ),
    how=Timing(prepare=preparing(drafter), per="tokens", n_warmup=0),
    matched=MATCHED,
    arms=(
        Arm(id="plain", label="one token a pass"),
        Arm(id="chain", label="chains of up to three", options={"most": N_HEADS}),
        Arm(id="tree", label="trees of up to eight", options={"most": 8, "is_tree": True}),
    ),
    metrics=METRICS,
    claims=(
        at_least(per_pass("chat"), "chain", 1.2),
        ratio_between(time_of("chat"), "chain", 0.0, 0.95),
    ),
    budgets={
        **EAGLE.budgets,
        "quick": replace(QUICK, setup_seconds=100.0),
    },
    predicted=predicted,
    setup=setup,
    means={
        "confirmed": "Guessing costs next to nothing, so that little foresight pays already.",
        "refuted": "Heads that learned for minutes foresee one token in twenty, and a pass over "
        "several tokens costs more than that saves.",
    },
)
