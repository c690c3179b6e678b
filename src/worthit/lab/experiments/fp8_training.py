"""Products in eight bits, gradients with more range: what the rounding costs in loss."""

from __future__ import annotations

from torch import nn

from worthit.lab.claims import no_worse
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._formats import BUDGETS, MATCHED, arm, narrowed
from worthit.lab.experiments._text import LOSS, ON_TEXT
from worthit.lab.predict import unseen
from worthit.spec.model import ModelSpec
from worthit.techniques.precision._sources import MICIKEVICIUS_2022


def fp8(spec: ModelSpec, seed: int) -> nn.Module:
    """E4M3 forward, E5M2 for gradients, a scale a tensor."""
    return narrowed(spec, seed, "fp8")


EXPERIMENT = Experiment(
    id="fp8-training",
    technique="fp8-training",
    question="Does training with products in FP8 cost loss?",
    expectation=Expectation(
        statement="Matrix products in E4M3, gradients in E5M2: the loss of training in 16 bits.",
        source=MICIKEVICIUS_2022,
        refuted_if="the loss is 0.05 nats worse",
        worth_it=True,
    ),
    how=ON_TEXT,
    matched=MATCHED,
    arms=(
        arm("fp32", "fp32"),
        arm("fp8", "fp8", fp8),
    ),
    metrics=(LOSS,),
    claims=(no_worse(LOSS, "fp8"),),
    budgets=BUDGETS,
    predicted=lambda setting: unseen(setting, "loss"),
    means={
        "confirmed": "Eight bits round no loss away at this size; whether they are faster is for "
        "hardware that has them, which this simulation is not.",
        "refuted": "Already at this size the rounding shows: scales for a whole tensor are too "
        "coarse for it.",
    },
)
