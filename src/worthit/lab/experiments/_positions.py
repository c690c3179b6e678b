"""What the experiments on positions share: text read further than it was trained on.

A small decoder of bytes is trained on windows of 32 and tested on the same last 16 bytes of windows
up to four times as long: nothing differs between lengths but what precedes. Little of Python's
source is needed to see a scheme fail, since most of what predicts a byte stands just before it; a
model that merely ignored what is far would not lose anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from worthit.lab import models, predict
from worthit.lab.claims import Metric
from worthit.lab.context import Setting
from worthit.lab.experiment import Arm, Budget, Matched, Measures, Prediction, Training, Trial
from worthit.lab.metrics import LOSS as TEST_LOSS
from worthit.lab.tasks import task
from worthit.lab.tasks.scores import evaluate
from worthit.spec.model import ModelSpec, PositionKind
from worthit.train.batch import Data

FACTORS = (1, 2, 4)
# Seeds differ by some hundredths; so small a difference between schemes would decide nothing.
LOSS = replace(TEST_LOSS, name="loss at the trained length", margin=0.05)
AT = {
    k: Metric(id=f"loss_{k}x", name=f"loss at {k}x", unit="nats", margin=0.05) for k in FACTORS[1:]
}
# How much a model loses by reading on: its own loss at a length less that at the trained one.
RISE = {
    k: Metric(id=f"rise_{k}x", name=f"rise of the loss at {k}x", unit="nats", margin=0.05)
    for k in FACTORS[1:]
}


def text(budget: Budget) -> Data:
    """Python's source by bytes, stretched."""
    sizes = budget.sizes
    return task(
        "length-extrapolation",
        of="text",
        seq_len=sizes["seq_len"],
        factors=FACTORS,
        max_megabytes=4,
        n_held_out=sizes["windows"],
    )


def model(kind: PositionKind, budget: Budget) -> ModelSpec:
    """The small decoder with positions of `kind`, as many as the longest test has.

    Embedded tokens are scaled by the root of the width in every arm, as Vaswani et al. 2017,
    section 3.4, have it: added waves would drown them otherwise.
    """
    width = budget.sizes["d_model"]
    longest = budget.sizes["seq_len"] * max(FACTORS)
    rows: dict[str, Any] = {"n_positions": longest} if kind == "learned" else {}
    return models.decoder(
        width,
        mixers=models.attention(width, head_dim=8),
        position=kind,
        context_len=longest,
        embedding_scale=width**0.5,
        **rows,
    )


def arm(kind: PositionKind, label: str) -> Arm:
    """The arm of a scheme, called by its name."""
    return Arm(id=kind, label=label, model=lambda budget: model(kind, budget))


def losses(trial: Trial) -> Measures:
    """Loss at every length, its rise, and the curve of both."""
    found = {
        k: evaluate(trial.model, trial.data.held_out(f"test-{k}x")).overall.loss for k in FACTORS
    }
    return {
        **{f"loss_{k}x": loss for k, loss in found.items() if k > 1},
        **{f"rise_{k}x": loss - found[1] for k, loss in found.items() if k > 1},
        "loss by length": tuple((float(k * trial.data.seq_len), loss) for k, loss in found.items()),
    }


def unseen(setting: Setting) -> Iterator[Prediction]:
    """Cost sees no quality, and positions cost next to nothing."""
    yield from predict.unseen(setting, "loss", "loss_4x")


ON_TEXT = Training(data=text, score=losses)
MATCHED = Matched(
    what=("tokens",),
    because="the schemes add no parameters, or a table whose size is reported; widths, data and "
    "steps are the same",
)
QUICK = Budget(
    n_seeds=4,
    n_steps=400,
    batch_size=16,
    learning_rates=(3e-3, 1e-2, 3e-2),
    n_tuning_steps=150,
    sizes={"seq_len": 32, "d_model": 32, "windows": 64},
)
BUDGETS = {
    "smoke": replace(QUICK, n_seeds=3, n_steps=60, n_tuning_steps=20),
    "quick": QUICK,
    "full": replace(
        QUICK,
        n_seeds=8,
        n_steps=3000,
        n_tuning_steps=1000,
        sizes={"seq_len": 64, "d_model": 64, "windows": 128},
    ),
}
