"""One block four times, against four blocks and against one: what shared weights keep."""

from __future__ import annotations

from worthit.lab.claims import ratio_between, superior
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Matched, Training
from worthit.lab.experiments._depths import BUDGETS, stack, unseen
from worthit.lab.experiments._text import LOSS, RECIPE, text
from worthit.lab.metrics import PARAMETERS
from worthit.spec.model import ModelSpec
from worthit.techniques.depth._sources import BAE_2024

N_LOOPS = 4


def looped(budget: Budget) -> ModelSpec:
    """One block, applied four times."""
    return stack(budget, 1, n_loops=N_LOOPS)


EXPERIMENT = Experiment(
    id="recursive-transformer",
    technique="recursive-transformer",
    question="What of four layers does one layer keep that is applied four times?",
    expectation=Expectation(
        statement="At equal parameters the loop is better than the single pass, and a model of "
        "fewer parameters comes near the one that it was made from.",
        source=BAE_2024,
        refuted_if="the loop is no better than one layer at its own number of parameters",
        worth_it=True,
    ),
    how=Training(data=text, recipe=RECIPE),
    matched=Matched(
        what=("tokens",),
        because="the loop has the parameters of one layer and the FLOPs of four: it stands between",
    ),
    arms=(
        Arm(id="one", label="one layer", model=lambda budget: stack(budget, 1)),
        Arm(id="looped", label="one layer, four times", model=looped),
        Arm(id="four", label="four layers", model=lambda budget: stack(budget, N_LOOPS)),
    ),
    metrics=(LOSS, PARAMETERS),
    claims=(
        superior(LOSS, "looped", by=0.0),
        ratio_between(PARAMETERS, "looped", 0.99, 1.01),
    ),
    budgets=BUDGETS,
    predicted=unseen,
    means={
        "confirmed": "Going round buys loss for compute and no parameters: worth it where memory "
        "binds and time does not.",
        "refuted": "In so short a training the loop learns no more than one pass: its depth is "
        "paid"
        "for and not used.",
    },
)
