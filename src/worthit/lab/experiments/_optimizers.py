"""What the experiments on optimizers share: one model and task, each optimizer at its best rate."""

from __future__ import annotations

from dataclasses import replace

from worthit.lab import models
from worthit.lab.experiment import Arm, Matched
from worthit.lab.experiments._text import QUICK, budgets
from worthit.train.recipe import OptimizerName

# What a better optimizer is claimed to be worth is a share of the steps; here it is read as loss
# after as many steps.
GRID = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
MATCHED = Matched(
    what=("parameters", "FLOPs", "tokens"),
    because="the same model sees the same data as often; what the optimizer itself computes is "
    "reported as the time of a step",
)
BUDGETS = budgets(replace(QUICK, n_seeds=4, n_tuning_steps=150, learning_rates=GRID))


def arm(optimizer: OptimizerName, label: str) -> Arm:
    """The small decoder trained by `optimizer`."""
    return Arm(
        id=optimizer,
        label=label,
        model=lambda budget: models.decoder(budget.sizes["d_model"]),
        recipe={"optimizer": optimizer},
    )
