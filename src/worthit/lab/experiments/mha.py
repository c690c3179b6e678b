"""A key/value head for every query head, against two that are shared: is the full cache worth it?

One wide head stands beside them, with a cache as large as that of the eight.
"""

from __future__ import annotations

from worthit.lab import predict
from worthit.lab.claims import not_better, ratio_between, superior
from worthit.lab.context import Setting
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Prediction
from worthit.lab.experiments._heads import (
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


def grouped(budget: Budget) -> ModelSpec:
    """Eight query heads, two key/value heads."""
    return as_large_as(full_heads(budget), decoder(heads(budget, n_kv_heads=2), budget))


def single(budget: Budget) -> ModelSpec:
    """One head as wide as the model."""
    width = budget.sizes["d_model"]
    return decoder(heads(budget, n_heads=1, n_kv_heads=1, head_dim=width), budget)


def predicted(setting: Setting) -> list[Prediction]:
    """Bytes to the unit; quality cost cannot see."""
    return [
        *predict.unseen(setting, "loss"),
        *predict.counted(setting, "cache_bytes", "cache bytes"),
        *predict.counted(setting, "parameters", "parameters"),
    ]


EXPERIMENT = Experiment(
    id="mha",
    technique="mha",
    question="Is a cache of eight full heads worth it over two shared ones at a quarter of the "
    "bytes?",
    expectation=Expectation(
        statement="What full heads buy over groups is small, for four times the cache; what many "
        "heads buy over a single one is not.",
        source=AINSLIE_2023,
        refuted_if="full heads are better by 0.02 nats at equal parameters, or no better than one "
        "wide head",
        worth_it=False,
    ),
    how=ON_TEXT,
    matched=MATCHED,
    arms=(
        Arm(id="gqa", label="2 shared heads", model=grouped),
        Arm(id="mha", label="8 full heads", model=full_heads),
        Arm(id="single", label="1 wide head", model=single),
    ),
    metrics=(LOSS, CACHE_BYTES, PARAMETERS),
    claims=(
        not_better(LOSS, "mha"),
        ratio_between(CACHE_BYTES, "mha", 3.9, 4.1),
        superior(LOSS, "mha", by=0.0, against="single"),
    ),
    budgets=MORE_SEEDS,
    predicted=predicted,
    means={
        "confirmed": "Many query heads earn their keep, a cache for each does not: share them, and "
        "spend the parameters elsewhere.",
    },
)
