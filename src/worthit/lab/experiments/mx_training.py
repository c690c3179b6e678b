"""Blocks of 32 that share a scale, in eight bits and in four: what each costs in loss."""

from __future__ import annotations

from torch import nn

from worthit.lab.claims import no_worse, superior
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._formats import BUDGETS, MATCHED, arm, narrowed
from worthit.lab.experiments._text import LOSS, ON_TEXT
from worthit.lab.predict import unseen
from worthit.spec.model import ModelSpec
from worthit.techniques.precision.mx_training import ROUHANI_2023


def mxfp8(spec: ModelSpec, seed: int) -> nn.Module:
    """E4M3 everywhere."""
    return narrowed(spec, seed, "mxfp8")


def mxfp4(spec: ModelSpec, seed: int) -> nn.Module:
    """E2M1 everywhere, rounded to the nearest, so that seeds train together."""
    return narrowed(spec, seed, "mxfp4", is_stochastic=False)


EXPERIMENT = Experiment(
    id="mx-training",
    technique="mx-training",
    question="How narrow may the blocks be that training multiplies?",
    expectation=Expectation(
        statement="In MXFP8 the loss is that of full precision; four bits need care, and cost "
        "some.",
        source=ROUHANI_2023,
        refuted_if="with MXFP8 the loss is 0.05 nats worse, or with MXFP4 it is not worse than "
        "with MXFP8",
        worth_it=True,
    ),
    how=ON_TEXT,
    matched=MATCHED,
    arms=(
        arm("fp32", "fp32"),
        arm("mxfp8", "MXFP8", mxfp8),
        arm("mxfp4", "MXFP4", mxfp4),
    ),
    metrics=(LOSS,),
    claims=(
        no_worse(LOSS, "mxfp8"),
        superior(LOSS, "mxfp8", by=0.0, against="mxfp4"),
    ),
    budgets=BUDGETS,
    predicted=lambda setting: unseen(setting, "loss"),
    means={
        "confirmed": "Eight bits in blocks cost nothing, four cost some: MXFP8 is safe where "
        "hardware has it.",
        "refuted": "Read the two claims apart: either eight bits cost something here, or four "
        "bits cost no more than eight.",
    },
)
