"""Matrices in 8 bits by row, on a published model: what decoding gains and what text loses."""

from __future__ import annotations

from worthit.lab.claims import no_worse, ratio_between, superior
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Matched, Timing
from worthit.lab.experiments._low_bits import (
    BYTES,
    LOSS,
    TOKEN_TIME,
    predicted,
    prepare,
    setup,
)
from worthit.techniques.precision._sources import GPT_FAST_2023

QUICK = Budget(
    n_seeds=5, n_rounds=5, sizes={"tokens": 512, "output": 32}, seconds=16.0, setup_seconds=20.0
)
EXPERIMENT = Experiment(
    id="int8-weights",
    technique="int8-weights",
    question="Does half of the bytes make one user's tokens come sooner, and what does it cost?",
    expectation=Expectation(
        statement="Half of the bytes, a third less time a token, and a loss that cannot be told "
        "from the one in 16 bits.",
        source=GPT_FAST_2023,
        refuted_if="a token takes as long as in bf16, or the loss rises by 0.05 nats",
        worth_it=True,
    ),
    how=Timing(prepare=prepare, per="n", n_warmup=1),
    matched=Matched(what=("nothing",), because="the same weights, rounded; the same text"),
    arms=(
        Arm(id="bf16", label="16 bits"),
        Arm(
            id="int8",
            label="8 bits by row",
            options={"weights": "int8", "method": "rtn", "embeddings": "int8"},
        ),
    ),
    metrics=(TOKEN_TIME, LOSS, BYTES),
    claims=(
        superior(TOKEN_TIME, "int8", by=0.0),
        no_worse(LOSS, "int8"),
        ratio_between(BYTES, "int8", 0.0, 0.55),
    ),
    budgets={
        "smoke": Budget(
            n_seeds=2,
            n_rounds=2,
            sizes={"tokens": 128, "output": 8},
            seconds=3.0,
            setup_seconds=20.0,
        ),
        "quick": QUICK,
        "full": Budget(
            n_seeds=10,
            n_rounds=15,
            sizes={"tokens": 2048, "output": 128},
            seconds=150.0,
            setup_seconds=20.0,
        ),
    },
    predicted=lambda setting: predicted(setting, "int8-weights", {"int8": "int8"}),
    setup=setup,
    means={"confirmed": "Half of the bytes for nothing that text could tell: apply, for one user."},
)
