"""Experts that choose tokens look ahead: what a later token changes, and what decoding loses."""

from __future__ import annotations

import torch
from torch.nn import functional

from worthit.lab.claims import Metric, at_least, worse
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
from worthit.lab.experiments._mixtures import BUDGETS, balanced, mixture
from worthit.lab.experiments._text import LOSS, RECIPE, text
from worthit.lab.predict import unseen
from worthit.spec.model import ModelSpec
from worthit.techniques.moe.expert_choice import ZHOU_2022

LEAK = Metric(id="leak", name="predictions that a later token changes", margin=0.01)
GAP = Metric(id="gap", name="loss decoded less loss in one pass", unit="nats", margin=0.01)
N_TOKENS = 24


def experts(routing: str, budget: Budget) -> ModelSpec:
    """Two of eight experts a token, or as many tokens for each expert."""
    return mixture(budget, routing=routing, balance="none")


@torch.no_grad()
def ahead(trial: Trial) -> Measures:
    """What the model owes to tokens that it has not read.

    `leak`: the share of predictions that move by more than rounding when the last token is another.
    `gap`: the loss of the same text read token by token, as decoding does, less the loss in one
    pass, in which experts choose among all tokens.
    """
    model, batch = trial.model, next(iter(trial.data.held_out("test")))
    ids, targets = batch.input_ids[:16, :N_TOKENS], batch.targets[:16, :N_TOKENS]
    whole = model(ids)
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % trial.data.vocab_size
    moved = (model(changed)[:, :-1] - whole[:, :-1]).abs().amax(dim=-1) > 1e-4
    cache, steps = model.new_cache(), []
    for token in ids.split(1, dim=1):
        steps.append(model(token, cache=cache))
    decoded = torch.cat(steps, dim=1)
    losses = [
        functional.cross_entropy(x.flatten(0, 1), targets.flatten()) for x in (decoded, whole)
    ]
    return {"leak": float(moved.float().mean()), "gap": float(losses[0] - losses[1])}


EXPERIMENT = Experiment(
    id="expert-choice",
    technique="expert-choice",
    question="Does a decoder trained with expert choice know tokens that it has not read, and what "
    "is left of its loss when it has to decode?",
    expectation=Expectation(
        statement="Experts choose among all tokens of a sequence, later ones included; the authors "
        "name it as what stands in the way of autoregressive generation.",
        source=ZHOU_2022,
        refuted_if="later tokens change no earlier prediction, or decoding loses nothing",
        worth_it=False,
    ),
    how=Training(data=text, recipe=RECIPE, score=ahead),
    matched=Matched(
        what=("active parameters", "tokens"), because="two experts a token, on average or each"
    ),
    arms=(
        Arm(
            id="token-choice",
            label="tokens choose",
            model=lambda budget: experts("token-choice", budget),
            loss=balanced,
        ),
        Arm(
            id="expert-choice",
            label="experts choose",
            model=lambda budget: experts("expert-choice", budget),
        ),
    ),
    metrics=(GAP, LEAK, LOSS),
    claims=(
        at_least(LEAK, "expert-choice", 0.01),
        worse(GAP, "expert-choice", by=0.01),
    ),
    budgets=BUDGETS,
    predicted=lambda setting: unseen(setting, "gap", "leak", "loss"),
    means={
        "confirmed": "Its loss in training is partly borrowed from the future: a decoder pays it "
        "back. For encoders there is nothing to pay.",
        "refuted": "Later tokens do reach earlier ones, but this model has not learned to live on "
        "it: decoded, its loss is the same.",
    },
)
