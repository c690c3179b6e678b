"""Balance by a bias that follows the load, against balance by a loss: no gradient is disturbed."""

from __future__ import annotations

from torch import nn

from worthit.lab.claims import no_worse, superior
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Matched, Training
from worthit.lab.experiments._mixtures import (
    BUDGETS,
    IMBALANCE,
    balanced,
    imbalance,
    mixture,
    unseen,
)
from worthit.lab.experiments._text import LOSS, RECIPE, text
from worthit.nn.moe.aux_free_balancing import BiasBalancer
from worthit.spec.model import ModelSpec
from worthit.techniques.moe.aux_free_balancing import WANG_2024
from worthit.train import seeded

# The paper's 0.001 is for tens of thousands of steps; these are hundreds.
RATE = 0.02


def plain(budget: Budget) -> ModelSpec:
    """Two of eight experts a token, scored by sigmoids as DeepSeek-V3 does."""
    return mixture(budget, score="sigmoid", balance="none")


def biased(budget: Budget) -> ModelSpec:
    """The same with a selection bias."""
    return mixture(budget, score="sigmoid", balance="bias")


def with_balancer(spec: ModelSpec, seed: int) -> nn.Module:
    """A model that counts what its routers choose."""
    model: nn.Module = seeded(spec)(seed)
    balancer = BiasBalancer(model, rate=RATE)
    balancer.__enter__()
    model.balancer = balancer
    return model


def move_biases(model: nn.Module) -> None:
    """After an update: every bias a step towards balance."""
    model.balancer.step()


EXPERIMENT = Experiment(
    id="aux-free-balancing",
    technique="aux-free-balancing",
    question="Does a bias in the choice alone balance the experts, without the loss's price?",
    expectation=Expectation(
        statement="Better balance than a controlling loss, and a slightly lower perplexity.",
        source=WANG_2024,
        refuted_if="the imbalance is not lower than without any balancing, or the loss is worse "
        "than with the auxiliary loss by 0.05 nats",
        worth_it=True,
    ),
    how=Training(data=text, recipe=RECIPE, score=imbalance),
    matched=Matched(what=("parameters", "FLOPs", "tokens"), because="a buffer is added"),
    arms=(
        Arm(id="aux-loss", label="auxiliary loss", model=plain, loss=balanced),
        Arm(
            id="bias",
            label="bias",
            model=biased,
            build=with_balancer,
            after_step=move_biases,
        ),
        Arm(id="none", label="no balancing", model=plain),
    ),
    metrics=(IMBALANCE, LOSS),
    claims=(
        superior(IMBALANCE, "bias", by=0.1, against="none"),
        no_worse(LOSS, "bias"),
    ),
    budgets=BUDGETS,
    predicted=unseen,
    means={
        "confirmed": "The bias balances and the loss is untouched: what a balance loss does to the "
        "gradients need not be paid.",
        "refuted": "Either sigmoids over so few steps do not unbalance, so that there is nothing "
        "to"
        "mend, or the bias moves too slowly for a training this short.",
    },
)
