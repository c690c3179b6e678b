"""Matrices in 4 bits, rounded or calibrated, on a published model: tokens gained and text lost.

Groups of 32 numbers share a scale and a zero; the output head stays in 8 bits. The finer the
groups, the less there is for a calibration to repair, so groups of 64 are tried both ways.
"""

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
from worthit.techniques.precision.int4_weights import FRANTAR_2022

QUICK = Budget(
    n_seeds=5,
    n_rounds=5,
    sizes={"tokens": 512, "output": 32, "calibration": 16},
    seconds=30.0,
    setup_seconds=80.0,
)
FORMATS = {"groups-32": "int4-g32", "groups-64": "int4-g64", "gptq": "int4-g64"}
EXPERIMENT = Experiment(
    id="int4-weights",
    technique="int4-weights",
    question="What do 4 bits a weight gain for one user, and does calibrating them pay?",
    expectation=Expectation(
        statement="A token takes half the time of bf16 or less; rounding costs quality that "
        "calibration (GPTQ) mostly gives back.",
        source=FRANTAR_2022,
        refuted_if="a token takes more than two thirds of the time, or calibrated weights are no "
        "better than rounded ones in the same groups",
        worth_it=True,
    ),
    how=Timing(prepare=prepare, per="n", n_warmup=1),
    matched=Matched(what=("nothing",), because="the same weights, rounded; the same text"),
    arms=(
        Arm(id="bf16", label="16 bits"),
        *(
            Arm(
                id=arm,
                label=label,
                options={
                    "weights": FORMATS[arm],
                    "method": "gptq" if arm == "gptq" else "rtn",
                    "embeddings": "int8",
                },
            )
            for arm, label in (
                ("groups-32", "4 bits, groups of 32"),
                ("groups-64", "4 bits, groups of 64"),
                ("gptq", "groups of 64, GPTQ"),
            )
        ),
    ),
    metrics=(TOKEN_TIME, LOSS, BYTES),
    claims=(
        superior(TOKEN_TIME, "groups-32", by=1 / 3),
        superior(LOSS, "gptq", against="groups-64"),
        no_worse(LOSS, "gptq", margin=0.2),
        ratio_between(BYTES, "groups-32", 0.0, 0.45),
    ),
    budgets={
        "smoke": Budget(
            n_seeds=2,
            n_rounds=2,
            sizes={"tokens": 128, "output": 8, "calibration": 2},
            seconds=5.0,
            setup_seconds=50.0,
        ),
        "quick": QUICK,
        "full": Budget(
            n_seeds=10,
            n_rounds=15,
            sizes={"tokens": 2048, "output": 128, "calibration": 128},
            seconds=300.0,
            setup_seconds=600.0,
        ),
    },
    predicted=lambda setting: predicted(setting, "int4-weights", FORMATS),
    setup=setup,
    means={
        "confirmed": "For one user on a machine bound by memory: apply, calibrated, and look at "
        "your own text.",
    },
)
