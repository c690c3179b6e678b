"""Grouped heads against full ones, and against fewer or narrower full heads with the same cache.

Three ways to keep a quarter of the bytes: share heads, have fewer, or make them narrow.
"""

from __future__ import annotations

from worthit.lab import predict
from worthit.lab.claims import no_worse, ratio_between, superior
from worthit.lab.context import Setting
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Prediction
from worthit.lab.experiments._heads import (
    HEADS,
    LOSS,
    MATCHED,
    MORE_SEEDS,
    ON_TEXT,
    as_large_as,
    decoder,
    full_heads,
    heads,
)
from worthit.lab.metrics import CACHE_BYTES, PARAMETERS
from worthit.spec.model import ModelSpec
from worthit.techniques.attention._sources import AINSLIE_2023

# Query heads that share one key/value head; what the other two arms divide by.
SHARED_BY = 4


def grouped(budget: Budget) -> ModelSpec:
    """Eight query heads on two key/value heads."""
    mixer = heads(budget, n_kv_heads=HEADS // SHARED_BY)
    return as_large_as(full_heads(budget), decoder(mixer, budget))


def fewer(budget: Budget) -> ModelSpec:
    """Two full heads of the same width."""
    n = HEADS // SHARED_BY
    mixer = heads(budget, n_heads=n, n_kv_heads=n)
    return as_large_as(full_heads(budget), decoder(mixer, budget))


def narrower(budget: Budget) -> ModelSpec:
    """Full heads of two channels each, as few as a rotation needs."""
    n = budget.sizes["d_model"] // SHARED_BY // 2
    mixer = heads(budget, n_heads=n, n_kv_heads=n, head_dim=2)
    return as_large_as(full_heads(budget), decoder(mixer, budget))


def predicted(setting: Setting) -> list[Prediction]:
    """Bytes to the unit; quality cost cannot see."""
    return [
        *predict.unseen(setting, "loss"),
        *predict.counted(setting, "cache_bytes", "cache bytes"),
        *predict.counted(setting, "parameters", "parameters"),
    ]


EXPERIMENT = Experiment(
    id="gqa",
    technique="gqa",
    question="With a quarter of the cache, is it better to share heads than to have fewer or "
    "narrower ones?",
    expectation=Expectation(
        statement="Sharing keeps the quality of full heads and is better than fewer or narrower "
        "heads with as small a cache.",
        source=AINSLIE_2023,
        refuted_if="groups are worse than full heads by 0.02 nats, or no better than either "
        "alternative",
        worth_it=True,
    ),
    how=ON_TEXT,
    matched=MATCHED,
    arms=(
        Arm(id="mha", label="8 full heads", model=full_heads),
        Arm(id="gqa", label="2 shared heads", model=grouped),
        Arm(id="fewer", label="2 full heads", model=fewer),
        Arm(id="narrower", label="narrow full heads", model=narrower),
    ),
    metrics=(LOSS, CACHE_BYTES, PARAMETERS),
    claims=(
        no_worse(LOSS, "gqa"),
        ratio_between(CACHE_BYTES, "gqa", 0.24, 0.26),
        superior(LOSS, "gqa", by=0.0, against="fewer"),
        superior(LOSS, "gqa", by=0.0, against="narrower"),
    ),
    budgets=MORE_SEEDS,
    predicted=predicted,
    means={
        "confirmed": "Of the ways to a quarter of the cache, sharing is the best: the default.",
    },
)
