"""Norms before each half of a layer, or after the sum: deep stacks without a warm-up."""

from __future__ import annotations

from worthit.lab import models
from worthit.lab.claims import superior
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Matched
from worthit.lab.experiments._text import COLD, DEEP, LOSS, budgets, unseen
from worthit.lab.metrics import DIVERGED, PARAMETERS
from worthit.spec.model import ModelSpec, Norm
from worthit.techniques.norm.pre_norm import XIONG_2020

N_LAYERS = 8


def stack(placement: str, budget: Budget) -> ModelSpec:
    """Eight narrow layers with LayerNorm in one place or the other."""
    norm = Norm(kind="layernorm", has_bias=True)
    return models.decoder(
        budget.sizes["d_model"], n_layers=N_LAYERS, norm=norm, placement=placement
    )


EXPERIMENT = Experiment(
    id="pre-norm",
    technique="pre-norm",
    question="Does a deep stack train without a warm-up where its norms stand in front?",
    expectation=Expectation(
        statement="Without a warm-up the norm in front trains and the norm behind does not, or not "
        "as far; a warm-up brings the other near.",
        source=XIONG_2020,
        refuted_if="without a warm-up the loss of post-norm is within 0.05 nats",
        worth_it=True,
    ),
    how=COLD,
    matched=Matched(what=("parameters", "FLOPs", "tokens"), because="norms move, none is added"),
    arms=(
        Arm(id="post", label="norms behind", model=lambda budget: stack("post", budget)),
        Arm(id="pre", label="norms in front", model=lambda budget: stack("pre", budget)),
        Arm(
            id="post-warm",
            label="norms behind, warm-up",
            model=lambda budget: stack("post", budget),
            recipe={"warmup_steps": 30},
        ),
    ),
    metrics=(LOSS, DIVERGED, PARAMETERS),
    claims=(superior(LOSS, "pre", by=0.05),),
    budgets=budgets(DEEP),
    predicted=unseen,
    means={
        "confirmed": "Eight layers already show it: with the norm in front no warm-up is needed.",
        "refuted": "At this depth and width post-norm trains as well without a warm-up: the "
        "instability needs deeper or wider stacks than a minute trains.",
    },
)
