"""Queries and keys of length one, at a learning rate that plain attention hardly bears."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from worthit.lab import models
from worthit.lab.claims import Metric, superior
from worthit.lab.experiment import (
    Arm,
    Budget,
    Expectation,
    Experiment,
    Matched,
    Measures,
    Training,
    Trial,
)
from worthit.lab.experiments._text import BUDGETS, LOSS, RECIPE, text, unseen
from worthit.lab.metrics import DIVERGED, PARAMETERS
from worthit.spec.model import ModelSpec, QKNorm
from worthit.techniques.norm.qk_norm import WORTSMAN_2023

# Thirty times what suits this model.
HIGH = 3e-1
LOGITS = Metric(id="logits", name="largest attention logit", margin=0.2, scale="ratio")


def attention(qk_norm: QKNorm, budget: Budget) -> ModelSpec:
    """The small decoder, with or without norms of queries and keys."""
    d = budget.sizes["d_model"]
    return models.decoder(d, mixers=models.attention(d, qk_norm=qk_norm))


class LargestLogit(TorchFunctionMode):
    """The largest |q k| scale of the fused attentions inside the block, which write no scores."""

    value = 0.0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Look at the queries and keys of an attention, and pass everything on."""
        if func is functional.scaled_dot_product_attention:
            q, k = args[0], args[1]
            scale = (kwargs or {}).get("scale") or q.shape[-1] ** -0.5
            self.value = max(self.value, float((q @ k.transpose(-1, -2)).abs().max()) * scale)
        return func(*args, **(kwargs or {}))


def logits(trial: Trial) -> Measures:
    """The largest attention logit on the test split, over all layers and heads."""
    with torch.no_grad(), LargestLogit() as largest:
        for batch in trial.data.held_out("test"):
            trial.model(batch.input_ids)
    return {"logits": largest.value}


EXPERIMENT = Experiment(
    id="qk-norm",
    technique="qk-norm",
    question="Does attention survive thirty times the usual learning rate with normalised "
    "queries and"
    "keys?",
    expectation=Expectation(
        statement="Small models reproduce the growth of attention logits at high learning rates; "
        "with the norms they train well at several times the rate.",
        source=WORTSMAN_2023,
        refuted_if="at the high rate the loss with the norms is not 0.05 nats lower",
        worth_it=True,
    ),
    how=Training(data=text, recipe=RECIPE, score=logits),
    matched=Matched(
        what=("parameters", "FLOPs", "tokens"),
        because="two vectors of a head's width a layer; the learning rate is the same on purpose",
    ),
    arms=(
        Arm(id="plain", label="plain", model=lambda budget: attention("none", budget)),
        Arm(id="qk-norm", label="QK-norm", model=lambda budget: attention("head", budget)),
    ),
    metrics=(LOSS, LOGITS, DIVERGED, PARAMETERS),
    claims=(superior(LOSS, "qk-norm", by=0.05), superior(LOGITS, "qk-norm", by=0.2)),
    budgets={name: replace(budget, learning_rates=(HIGH,)) for name, budget in BUDGETS.items()},
    predicted=unseen,
    means={
        "confirmed": "The norms hold the logits and with them the training, at a rate that costs "
        "plain attention its loss.",
        "refuted": "The logits are bounded, and at this size that decides nothing: other parts "
        "suffer from the rate as much.",
    },
)
