"""What the experiments on depth share: stacks of one kind of layer, text, and counted FLOPs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from worthit.lab import models, predict
from worthit.lab.claims import Metric
from worthit.lab.context import Setting
from worthit.lab.experiment import Budget, Prediction
from worthit.lab.experiments._mixtures import BUDGETS as MIXTURES
from worthit.spec.model import Layer, ModelSpec

BUDGETS = {
    **MIXTURES,
    "quick": replace(MIXTURES["quick"], n_seeds=5),
}
DEPTH = Metric(id="depth", name="layers a token runs", margin=0.1)


def stack(budget: Budget, n_layers: int, **changes: Any) -> ModelSpec:
    """The small decoder, `changes` in every layer."""

    def change(layer: Layer) -> Layer:
        return replace(layer, **changes)

    return models.decoder(budget.sizes["d_model"], n_layers=n_layers).map_layers(change)


def unseen(setting: Setting) -> Iterator[Prediction]:
    """Cost sees parameters, not what they learn."""
    yield from predict.unseen(setting, "loss")
    yield from predict.counted(setting, "parameters", "parameters")
