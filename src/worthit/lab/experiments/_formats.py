"""What the experiments on number formats share: one model, its products rounded to a format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from worthit.lab import models
from worthit.lab.experiment import Arm, Budget, Matched
from worthit.lab.experiments._text import QUICK, budgets
from worthit.spec.model import ModelSpec
from worthit.train import seeded
from worthit.train.precision import apply_precision

MATCHED = Matched(
    what=("parameters", "FLOPs", "tokens"),
    because="the same model and steps; products are rounded as the hardware would round them, "
    "simulated in fp32, so that time says nothing",
)
BUDGETS = budgets(
    replace(QUICK, n_seeds=4, n_steps=150, n_tuning_steps=50, learning_rates=(1e-2, 3e-2, 1e-1))
)


def model(budget: Budget) -> ModelSpec:
    """The small decoder, its width whole blocks of 32."""
    return models.decoder(64 if budget.sizes["d_model"] < 64 else 96)


def arm(id: str, label: str, build: Callable[[ModelSpec, int], nn.Module] | None = None) -> Arm:
    """The model in a format; in fp32 where no `build` is given."""
    return Arm(id=id, label=label, model=model, build=build)


def narrowed(spec: ModelSpec, seed: int, name: str, **options: Any) -> nn.Module:
    """A fresh model whose products are in format `name`."""
    made: nn.Module = apply_precision(seeded(spec)(seed), name, **options)
    return made
