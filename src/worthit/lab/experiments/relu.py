"""Zeros that decoding may skip: how many, and what they cost in loss against GELU."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from worthit.lab.claims import Metric, at_least, no_worse
from worthit.lab.experiment import Arm, Expectation, Experiment, Measures, Training, Trial
from worthit.lab.experiments._text import BUDGETS, LOSS, RECIPE, SAME_SIZE, text, unseen
from worthit.lab.experiments.gelu import with_activation
from worthit.lab.metrics import PARAMETERS
from worthit.nn.ffn import FeedForward
from worthit.techniques.norm.relu import MIRZADEH_2023

ZEROS = Metric(id="zeros", name="share of activations that are zero", better="higher", margin=0.05)


def zeros(trial: Trial) -> Measures:
    """The share of the feed-forwards' inner activations that are zero on the test split."""
    counts = [0, 0]

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts[0] += int((inputs[0] == 0).sum())
        counts[1] += inputs[0].numel()

    hooks = [
        m.down.register_forward_pre_hook(count)
        for m in trial.model.modules()
        if isinstance(m, FeedForward)
    ]
    with torch.no_grad():
        for batch in trial.data.held_out("test"):
            trial.model(batch.input_ids)
    for hook in hooks:
        hook.remove()
    return {"zeros": counts[0] / counts[1]}


EXPERIMENT = Experiment(
    id="relu",
    technique="relu",
    question="Does ReLU keep GELU's quality, and how much of its work could be skipped?",
    expectation=Expectation(
        statement="Nearly the quality of smooth activations, with most activations zero.",
        source=replace(MIRZADEH_2023, where="section 3"),
        refuted_if="the loss is 0.05 nats worse, or fewer than half of the activations are zero",
        worth_it=None,
    ),
    how=Training(data=text, recipe=RECIPE, score=zeros),
    matched=SAME_SIZE,
    arms=(
        Arm(id="gelu", label="GELU", model=lambda budget: with_activation("gelu", budget)),
        Arm(id="relu", label="ReLU", model=lambda budget: with_activation("relu", budget)),
    ),
    metrics=(LOSS, ZEROS, PARAMETERS),
    claims=(no_worse(LOSS, "relu"), at_least(ZEROS, "relu", 0.5)),
    budgets=BUDGETS,
    predicted=unseen,
    means={
        "confirmed": "ReLU costs nothing here, and more than half of the second matrix's rows "
        "could be left unread for each token: worth it where a kernel does that.",
        "refuted": "Either the curve or the zeros are not what the claim says of large models: "
        "read the two claims apart.",
    },
)
