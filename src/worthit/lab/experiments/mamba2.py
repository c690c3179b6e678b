"""A scalar in place of a diagonal: whether Mamba-2 learns as well, and trains faster."""

from __future__ import annotations

from worthit.lab import predict
from worthit.lab.claims import no_worse, superior
from worthit.lab.experiment import Arm, Expectation, Experiment, Matched, Training
from worthit.lab.experiments._states import budgets, mamba, mamba2, stack
from worthit.lab.experiments._text import LOSS, RECIPE, text
from worthit.lab.metrics import PARAMETERS, STEP_SECONDS
from worthit.techniques.ssm._sources import DAO_2024

N_LAYERS = 4
EXPERIMENT = Experiment(
    id="mamba2",
    technique="mamba2",
    question="Does Mamba-2 reach Mamba's loss at an equal state, in less time a step?",
    expectation=Expectation(
        statement="Two to eight times faster to train, at the same quality.",
        source=DAO_2024,
        refuted_if="its loss is 0.05 nats worse, or a step takes as long",
        worth_it=True,
    ),
    how=Training(data=text, recipe=RECIPE),
    matched=Matched(
        what=("tokens",),
        because="the same inner width and state a channel; Mamba-2 projects step, B and C from its "
        "input and has a few parameters fewer, which are reported",
    ),
    arms=(
        Arm(
            id="mamba",
            label="Mamba",
            model=lambda b: stack(b, mamba(b.sizes["d_model"]), N_LAYERS),
        ),
        Arm(
            id="mamba2",
            label="Mamba-2",
            model=lambda b: stack(b, mamba2(b.sizes["d_model"]), N_LAYERS),
        ),
    ),
    metrics=(LOSS, STEP_SECONDS, PARAMETERS),
    claims=(no_worse(LOSS, "mamba2"), superior(STEP_SECONDS, "mamba2", by=0.0)),
    budgets=budgets(),
    predicted=lambda setting: [
        *predict.unseen(setting, "loss"),
        *predict.counted(setting, "parameters", "parameters"),
        *predict.train_time(setting, "step_s"),
    ],
    means={
        "confirmed": "The restriction costs nothing that a minute of training shows, and steps are "
        "shorter: of the two there is no reason to begin with the older.",
        "refuted": "Read the two claims apart: at so small a state and so short a sequence the "
        "matrix products that Mamba-2 is made for are hardly worth starting.",
    },
)
