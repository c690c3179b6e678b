"""What stands anywhere among noise: a fixed state space cannot choose it, Mamba can."""

from __future__ import annotations

from dataclasses import replace

from worthit.lab.claims import at_least, superior
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Matched, Training
from worthit.lab.experiments._states import QUICK, STATE_BYTES, budgets, mamba, s4, stack, unseen
from worthit.lab.experiments._text import RECIPE
from worthit.lab.metrics import ACCURACY
from worthit.lab.tasks import task
from worthit.techniques.ssm._sources import GU_2023
from worthit.train.batch import Data

COPIED = replace(ACCURACY, name="symbols copied", margin=0.05)


def scattered(budget: Budget) -> Data:
    """Four symbols anywhere among twelve places of noise, to be given back in order."""
    return task("selective-copying", n_content=4, seq_len=20, vocab_size=10)


EXPERIMENT = Experiment(
    id="s4-selection",
    technique="mamba",
    question="Does selection let a state space keep what matters and forget what does not?",
    expectation=Expectation(
        statement="Selective copying is solved with the selective scan (97 % and more) and hardly "
        "with S4's fixed coefficients (18 %, 57 % inside Mamba's block).",
        source=GU_2023,
        refuted_if="Mamba copies no more symbols than S4 by 20 points",
        worth_it=True,
    ),
    how=Training(data=scattered, recipe=RECIPE),
    matched=Matched(
        what=("tokens",),
        because="two layers of one width; S4 is given feed-forwards between its layers, which "
        "Mamba's block has inside",
    ),
    arms=(
        Arm(
            id="s4",
            label="S4",
            model=lambda b: stack(b, s4(b.sizes["d_model"]), 2, has_ffn=True),
        ),
        Arm(id="mamba", label="Mamba", model=lambda b: stack(b, mamba(b.sizes["d_model"]), 2)),
    ),
    metrics=(COPIED, STATE_BYTES),
    claims=(superior(COPIED, "mamba", by=0.2), at_least(COPIED, "mamba", 0.8)),
    budgets=budgets(replace(QUICK, n_steps=500, n_tuning_steps=200, batch_size=32)),
    predicted=unseen,
    means={
        "confirmed": "Choosing by content is what a state needs: with it the same memory solves "
        "what"
        "is closed to fixed coefficients.",
        "refuted": "In so few steps selection has not been learned, or the feed-forwards let S4 "
        "find"
        "a way around it.",
    },
)
