"""Norms against none at all: whether a stack of layers trains, and how far."""

from __future__ import annotations

from torch import nn

from worthit.lab import models
from worthit.lab.claims import superior
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Matched
from worthit.lab.experiments._text import COLD, DEEP, LOSS, budgets, unseen
from worthit.lab.metrics import DIVERGED, PARAMETERS
from worthit.spec.model import ModelSpec, Norm
from worthit.techniques.norm.layernorm import BA_2016
from worthit.train import seeded

N_LAYERS = 6


def deep(budget: Budget) -> ModelSpec:
    """A stack of narrow layers with LayerNorm before each half."""
    norm = Norm(kind="layernorm", has_bias=True)
    return models.decoder(budget.sizes["d_model"], n_layers=N_LAYERS, norm=norm)


def without_norms(spec: ModelSpec, seed: int) -> nn.Module:
    """The same model, each norm an identity."""
    model = seeded(spec)(seed)
    for block in model.layers:
        block.mixer_norm = block.ffn_norm = nn.Identity()
    model.final_norm = nn.Identity()
    return model


EXPERIMENT = Experiment(
    id="layernorm",
    technique="layernorm",
    question="Does a stack of six layers need its norms?",
    expectation=Expectation(
        statement="With norms training is faster and holds higher learning rates: a lower loss "
        "after the same steps, each at its best rate.",
        source=BA_2016,
        refuted_if="without norms the loss is within 0.05 nats",
        worth_it=True,
    ),
    how=COLD,
    matched=Matched(what=("parameters", "FLOPs", "tokens"), because="the norms alone go"),
    arms=(
        Arm(id="none", label="no norms", model=deep, build=without_norms),
        Arm(id="layernorm", label="LayerNorm", model=deep),
    ),
    metrics=(LOSS, DIVERGED, PARAMETERS),
    claims=(superior(LOSS, "layernorm", by=0.05),),
    budgets=budgets(DEEP),
    predicted=unseen,
    means={
        "confirmed": "Six layers already train further with norms, whatever the learning rate.",
        "refuted": "Six layers of this width train without norms as well, from an initialisation "
        "that scales residual branches down: the need grows with depth and width.",
    },
)
