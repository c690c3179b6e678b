"""A fixed state space copies what always stands in the same place, as attention does."""

from __future__ import annotations

from worthit.lab import models
from worthit.lab.claims import at_least
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Matched, Training
from worthit.lab.experiments._states import STATE_BYTES, budgets, s4, stack, unseen
from worthit.lab.experiments._text import RECIPE
from worthit.lab.metrics import EXACT_MATCH
from worthit.lab.tasks import task
from worthit.spec.model import ModelSpec
from worthit.techniques.ssm.s4 import GU_2021
from worthit.train.batch import Data


def copying(budget: Budget) -> Data:
    """Four symbols, silence, and the symbols again."""
    return task("copying", n_content=4, seq_len=24, vocab_size=10)


def attention(budget: Budget) -> ModelSpec:
    """Two layers of attention with rotary positions."""
    return models.decoder(budget.sizes["d_model"], n_layers=2)


EXPERIMENT = Experiment(
    id="s4",
    technique="s4",
    question="Does a state space with fixed coefficients remember across a silence?",
    expectation=Expectation(
        statement="A state space started from HiPPO holds what it read over long ranges: plain "
        "copying is solved.",
        source=GU_2021,
        refuted_if="fewer than nine copies of ten are exact",
        worth_it=None,
    ),
    how=Training(data=copying, recipe=RECIPE),
    matched=Matched(what=("tokens",), because="width and depth; what each keeps is reported"),
    arms=(
        Arm(id="attention", label="attention", model=attention),
        Arm(
            id="s4",
            label="S4",
            model=lambda b: stack(b, s4(b.sizes["d_model"]), 2, has_ffn=True),
        ),
    ),
    metrics=(EXACT_MATCH, STATE_BYTES),
    claims=(at_least(EXACT_MATCH, "s4", 0.9),),
    budgets=budgets(),
    predicted=unseen,
    means={
        "confirmed": "What stands in a fixed place a fixed state space gives back: its memory is "
        "long. Whether it can choose what to keep is asked by s4-selection.",
        "refuted": "In so few steps S4 does not learn to copy even from fixed places.",
    },
)
