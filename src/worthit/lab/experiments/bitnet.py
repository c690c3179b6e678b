"""Weights of -1, 0 and 1 from the first step: what two bits cost in loss at equal size."""

from __future__ import annotations

from torch import nn

from worthit.lab.claims import worse
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._formats import BUDGETS, MATCHED, arm, narrowed
from worthit.lab.experiments._text import LOSS, ON_TEXT
from worthit.lab.predict import unseen
from worthit.spec.model import ModelSpec
from worthit.techniques.precision.bitnet import MA_2024


def bitnet(spec: ModelSpec, seed: int) -> nn.Module:
    """Ternary weights, eight bits for what they meet."""
    return narrowed(spec, seed, "bitnet")


EXPERIMENT = Experiment(
    id="bitnet",
    technique="bitnet",
    question="What does a model of ternary weights lose at this size?",
    expectation=Expectation(
        statement="On a par with full precision from 3B on, and worse below: at 700M the "
        "perplexity is still 12.87 against 12.33.",
        source=MA_2024,
        refuted_if="the ternary model's loss is not worse",
        worth_it=False,
    ),
    how=ON_TEXT,
    matched=MATCHED,
    arms=(
        arm("fp32", "fp32"),
        arm("bitnet", "ternary", bitnet),
    ),
    metrics=(LOSS,),
    claims=(worse(LOSS, "bitnet", by=0.0),),
    budgets=BUDGETS,
    predicted=lambda setting: unseen(setting, "loss"),
    means={
        "confirmed": "At this size two bits a weight cost loss, as the claim says of small "
        "models: it is for large ones, and for hardware that adds where others multiply.",
        "refuted": "Ternary weights lose nothing here: the model has more parameters than it can "
        "use in so few steps.",
    },
)
