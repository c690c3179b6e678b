"""Gated linear attention on text: a decay that each token chooses, a constant one, and none."""

from __future__ import annotations

from worthit.lab import predict
from worthit.lab.claims import no_worse, superior
from worthit.lab.context import Setting
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Prediction
from worthit.lab.experiments._heads import (
    BUDGETS,
    LOSS,
    MATCHED,
    ON_TEXT,
    as_large_as,
    decoder,
    full_heads,
)
from worthit.lab.metrics import CACHE_BYTES, PARAMETERS
from worthit.spec.model import LinearAttention, LinearKind, ModelSpec
from worthit.techniques.attention._sources import YANG_2023

N_HEADS = 2


def linear(kind: LinearKind, budget: Budget) -> ModelSpec:
    """Two heads of a linear state, keys half as wide as values, as large a model as attention's."""
    value_dim = budget.sizes["d_model"] // N_HEADS
    mixer = LinearAttention(
        kind=kind,
        n_key_heads=N_HEADS,
        n_value_heads=N_HEADS,
        key_dim=value_dim // 2,
        value_dim=value_dim,
    )
    return as_large_as(full_heads(budget), decoder(mixer, budget))


def predicted(setting: Setting) -> list[Prediction]:
    """Bytes to the unit; quality cost cannot see."""
    return [
        *predict.unseen(setting, "loss"),
        *predict.counted(setting, "cache_bytes", "cache bytes"),
        *predict.counted(setting, "parameters", "parameters"),
    ]


EXPERIMENT = Experiment(
    id="gated-linear-attention",
    technique="gated-linear-attention",
    question="Does a linear state model text better when each token says how much of it to keep?",
    expectation=Expectation(
        statement="Lower loss than a constant decay and than none, at equal parameters, and within "
        "a tenth of a nat of attention.",
        source=YANG_2023,
        refuted_if="a constant decay has as low a loss, or attention is better by 0.1 nats",
        worth_it=True,
    ),
    how=ON_TEXT,
    matched=MATCHED,
    arms=(
        Arm(id="retention", label="constant decay", model=lambda b: linear("retention", b)),
        Arm(id="gated", label="gated decay", model=lambda b: linear("gated", b)),
        Arm(id="linear", label="no decay", model=lambda b: linear("linear", b)),
        Arm(id="attention", label="attention", model=full_heads),
    ),
    metrics=(LOSS, CACHE_BYTES, PARAMETERS),
    claims=(
        superior(LOSS, "gated", by=0.0),
        superior(LOSS, "gated", by=0.0, against="linear"),
        no_worse(LOSS, "gated", margin=0.1, against="attention"),
    ),
    budgets=BUDGETS,
    predicted=predicted,
    means={
        "confirmed": "The gate earns its projection: of the linear states the one to take for "
        "text.",
    },
)
