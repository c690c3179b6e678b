"""A block in a loop that each token leaves when it may, against the loop for all."""

from __future__ import annotations

from torch import nn

from worthit.lab.claims import no_worse
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Matched, Training
from worthit.lab.experiments._depths import BUDGETS, stack, unseen
from worthit.lab.experiments._text import LOSS, RECIPE, text
from worthit.lab.metrics import PARAMETERS
from worthit.nn.depth.mixture_of_recursions import MixtureOfRecursions
from worthit.spec.model import ModelSpec
from worthit.techniques.depth._sources import BAE_2025
from worthit.train import seeded

N_LOOPS = 3
# Capacities 3/3, 2/3 and 1/3: two thirds on average.
SHARE = 2 / 3


def looped(budget: Budget) -> ModelSpec:
    """A layer, then one that every token runs three times."""
    return _with_loop(budget, 1.0)


def routed(budget: Budget) -> ModelSpec:
    """The same, but tokens go round as often as they choose beforehand."""
    return _with_loop(budget, SHARE)


def _with_loop(budget: Budget, share: float) -> ModelSpec:
    return stack(budget, 1, n_loops=N_LOOPS, token_fraction=share)


def by_token(spec: ModelSpec, seed: int) -> nn.Module:
    """Tokens choose their depth, which looks at nothing to come."""
    model: nn.Module = seeded(spec)(seed)
    for module in model.modules():
        if isinstance(module, MixtureOfRecursions):
            module.chooser = "token"
    return model


EXPERIMENT = Experiment(
    id="mixture-of-recursions",
    technique="mixture-of-recursions",
    question="Can a third of the recursions be left out where tokens choose?",
    expectation=Expectation(
        statement="With fewer training FLOPs the routed recursion keeps the quality of the whole "
        "one, or is better at equal FLOPs.",
        source=BAE_2025,
        refuted_if="the loss is 0.05 nats worse than with all recursions for all tokens",
        worth_it=True,
    ),
    how=Training(data=text, recipe=RECIPE),
    matched=Matched(
        what=("parameters", "tokens"),
        within=0.05,
        because="the same block; routers of one vector a step are added, and recursions left out",
    ),
    arms=(
        Arm(id="looped", label="three rounds for all", model=looped),
        Arm(id="routed", label="rounds by choice", model=routed, build=by_token),
    ),
    metrics=(LOSS, PARAMETERS),
    claims=(no_worse(LOSS, "routed"),),
    budgets=BUDGETS,
    predicted=unseen,
    means={
        "confirmed": "Rounds that tokens leave out were not needed: their compute is saved.",
        "refuted": "Leaving rounds out costs loss at this size: with three in all none of them is "
        "idle, and routers need longer to learn than this training lasts.",
    },
)
