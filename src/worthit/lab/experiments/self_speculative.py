"""A model that was never trained to leave early drafts for itself: by an exit, and by skipping.

SmolLM2 has thirty layers. An exit after ten computes on the target's own cache; skipping drops the
eight layers that change their input least, and keeps a cache of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from worthit.decode.speculative.draft_model import DraftModel
from worthit.decode.speculative.drafter import Drafter
from worthit.decode.speculative.shallow import CALIBRATION, SharedExit, without
from worthit.lab.claims import at_least, at_most, not_better, worse
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
from worthit.techniques.decoding.self_speculative import ELHOUSHI_2024

MOST = 3
DEPTH, N_SKIPPED = 10, 8


def drafter(shared: Drafting, arm: Arm) -> tuple[Drafter | None, int]:
    """The first layers, or all but some."""
    model = shared.model
    if arm.id == "exit":
        return SharedExit(model, DEPTH), MOST
    if arm.id == "skip":
        ids = shared.tokenizer.encode(CALIBRATION)
        return DraftModel(without(model, N_SKIPPED, ids), model.spec.vocab_size), MOST
    return None, MOST


def predicted(setting: Setting) -> Iterator[Prediction]:
    """The time a token that cost foresees, with the acceptance of models trained for it."""
    yield from _drafting.foreseen(
        "self-speculative", setting, draft_len=MOST, draft_layers=DEPTH / 30
    )


QUICK = Budget(n_seeds=4, n_rounds=1, sizes={"tokens": 32}, seconds=40.0, setup_seconds=8.0)
EXPERIMENT = Experiment(
    id="self-speculative",
    technique="self-speculative",
    question="Can a model that was not trained for it draft with fewer of its own layers?",
    expectation=Expectation(
        statement="No: an untrained exit is seldom right, and a draft of most layers costs most of "
        "a pass. The gains that were published come with a training recipe for early exit.",
        source=ELHOUSHI_2024,
        refuted_if="either way reads the layers less often a token than plain decoding does",
        worth_it=False,
    ),
    how=Timing(prepare=preparing(drafter), per="tokens", n_warmup=0),
    matched=MATCHED,
    arms=(
        Arm(id="plain", label="one token a pass"),
        Arm(id="exit", label="leaves after 10 of 30 layers"),
        Arm(id="skip", label="skips 8 of 30 layers"),
    ),
    metrics=(
        TOKEN_TIME,
        READINGS,
        ACCEPTED,
        per_pass("edit"),
        per_pass("chat"),
        time_of("edit"),
        time_of("chat"),
        ALIKE,
    ),
    claims=(
        worse(READINGS, "exit", by=0.3),
        not_better(READINGS, "skip"),
        at_most(ACCEPTED, "exit", 0.3),
        # Which layers matter least is not nothing to know: it drafts far better than an exit.
        at_least(ACCEPTED, "skip", 0.3),
        at_least(ALIKE, "exit", 0.99),
        at_least(ALIKE, "skip", 0.99),
    ),
    budgets=budgets(QUICK),
    predicted=predicted,
    setup=setup,
    means={
        "confirmed": "Never without training for it: no layers of an ordinary model can be left "
        "out cheaply enough and rightly enough at once.",
        "refuted": "Neither pays, as was expected; but layers left out in the middle are missed "
        "even more than was expected, and fewer of their guesses are right.",
    },
)
