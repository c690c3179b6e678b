"""What experiments on quality share: a small decoder that reads Python's source, byte by byte.

Losses at this scale differ by some hundredths of a nat between seeds: a change has to be worth 0.05
to be told apart in minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from worthit.lab import predict
from worthit.lab.context import Setting
from worthit.lab.experiment import Budget, Matched, Prediction, Training
from worthit.lab.metrics import LOSS as TEST_LOSS
from worthit.lab.tasks import task
from worthit.train.batch import Data


def text(budget: Budget) -> Data:
    """The standard library's source by bytes."""
    sizes = budget.sizes
    return task("text", seq_len=sizes["seq_len"], max_megabytes=4, n_held_out=sizes["windows"])


def unseen(setting: Setting) -> Iterator[Prediction]:
    """Cost sees the size of a model, not what it learns."""
    yield from predict.unseen(setting, "loss")
    yield from predict.counted(setting, "parameters", "parameters")


LOSS = replace(TEST_LOSS, margin=0.05)
# A short warm-up, so that seeds differ by what they learn and not by how they started.
RECIPE = {"warmup_steps": 20}
ON_TEXT = Training(data=text, recipe=RECIPE)
COLD = Training(data=text)
SAME_SIZE = Matched(
    what=("parameters", "FLOPs", "tokens"),
    because="one part of each layer differs, at the same number of parameters",
)
QUICK = Budget(
    n_seeds=6,
    n_steps=250,
    batch_size=16,
    learning_rates=(3e-3, 1e-2, 3e-2, 1e-1),
    n_tuning_steps=100,
    sizes={"seq_len": 64, "d_model": 48, "windows": 48},
)


def budgets(quick: Budget = QUICK) -> dict[str, Budget]:
    """The three budgets around `quick`."""
    return {
        "smoke": replace(
            quick,
            n_seeds=3,
            n_steps=30,
            n_tuning_steps=10,
            learning_rates=quick.learning_rates[-2:],
        ),
        "quick": quick,
        "full": replace(
            quick,
            n_seeds=8,
            n_steps=12 * quick.n_steps,
            n_tuning_steps=4 * quick.n_steps,
            sizes={"seq_len": 128, "d_model": 96, "windows": 128},
        ),
    }


BUDGETS = budgets()
# Stacks of many layers, in as much time.
DEEP = replace(
    QUICK,
    n_seeds=4,
    n_steps=150,
    n_tuning_steps=60,
    batch_size=8,
    learning_rates=(1e-3, 3e-3, 1e-2, 3e-2),
)
