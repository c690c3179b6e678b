"""A sliding window against full attention on a needle, and with every other layer full."""

from __future__ import annotations

from worthit.lab.claims import at_most, no_worse, ratio_between
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment
from worthit.lab.experiments._needle import (
    BUDGETS,
    FOUND,
    FOUND_NEAR,
    KEYS_READ,
    MATCHED,
    ON_NEEDLE,
    attention,
    decoder,
    full,
    local,
    predicted,
)
from worthit.lab.metrics import CACHE_BYTES
from worthit.spec.model import ModelSpec
from worthit.techniques.attention.sliding_window import GEMMA_3

# A guess is right once in eight.
CHANCE = 0.25


def alternating(budget: Budget) -> ModelSpec:
    """A local layer, then a full one."""
    return decoder(budget, attention(budget, window=KEYS_READ), attention(budget))


EXPERIMENT = Experiment(
    id="sliding-window",
    technique="sliding-window",
    question="What does a window lose beyond its reach, and does one full layer in two bring it "
    "back?",
    expectation=Expectation(
        statement="A needle beyond the windows' joint reach is a matter of chance; within it "
        "nothing is lost, and neither is anything once every other layer is full.",
        source=GEMMA_3,
        refuted_if="more than a quarter of the needles beyond reach are found, a tenth of those "
        "within it is lost, or the alternating model loses a tenth",
        worth_it=None,
    ),
    how=ON_NEEDLE,
    matched=MATCHED,
    arms=(
        Arm(id="full", label="full", model=full),
        Arm(id="window", label="window of 18", model=local),
        Arm(id="alternating", label="window, then full", model=alternating),
    ),
    metrics=(FOUND, FOUND_NEAR, CACHE_BYTES),
    claims=(
        at_most(FOUND, "window", CHANCE),
        no_worse(FOUND_NEAR, "window"),
        no_worse(FOUND, "alternating"),
        ratio_between(CACHE_BYTES, "window", 0.0, 0.3),
    ),
    budgets=BUDGETS,
    predicted=predicted,
    means={
        "confirmed": "Beyond its reach a window knows nothing, and half the layers full is enough "
        "to know everything: alternate.",
    },
)
