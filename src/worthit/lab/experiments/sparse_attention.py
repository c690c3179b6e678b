"""Sixteen chosen keys against eighteen near ones and against all, on a needle.

Blocks of four keys are chosen by their mean: the query's own, the first, and the two best.
"""

from __future__ import annotations

from worthit.lab.claims import no_worse, superior
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
from worthit.techniques.attention.sparse_attention import YUAN_2025


def chosen(budget: Budget) -> ModelSpec:
    """Two layers that choose what they read."""
    by_choice = attention(budget, sparse_keys=KEYS_READ)
    return decoder(budget, by_choice, by_choice)


EXPERIMENT = Experiment(
    id="sparse-attention",
    technique="sparse-attention",
    question="Does a choice of keys find what a window of as many keys cannot see, as full "
    "attention does?",
    expectation=Expectation(
        statement="Trained from the start, chosen blocks find needles anywhere as full attention "
        "does, reading a quarter of the keys.",
        source=YUAN_2025,
        refuted_if="a tenth fewer needles are found than with full attention, or no more than with "
        "a window",
        worth_it=True,
    ),
    how=ON_NEEDLE,
    matched=MATCHED,
    arms=(
        Arm(id="full", label="full", model=full),
        Arm(id="chosen", label="16 chosen keys", model=chosen),
        Arm(id="window", label="18 near keys", model=local),
    ),
    metrics=(FOUND, FOUND_NEAR, CACHE_BYTES),
    claims=(
        no_worse(FOUND, "chosen"),
        no_worse(FOUND_NEAR, "chosen"),
        superior(FOUND, "chosen", by=0.3, against="window"),
    ),
    budgets=BUDGETS,
    predicted=predicted,
    means={
        "confirmed": "Which keys are read matters more than how many: choose them, where the "
        "kernel exists; the cache stays as large as it was.",
    },
)
