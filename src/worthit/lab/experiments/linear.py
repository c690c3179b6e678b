"""Model soup: the mean of three fine-tunings on one task, and of two on different ones."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial

from worthit.lab.claims import superior, worse
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Measures
from worthit.lab.experiments._merging import (
    FINE,
    MATCHED,
    NORMALISED,
    RETAINED,
    SKILL,
    Family,
    State,
    budgets,
    families,
    measures,
    predicted,
    trained,
)
from worthit.merge.linear import linear
from worthit.techniques.merging._checkpoints import WORTSMAN_2022

N_INGREDIENTS = 3


@dataclass(frozen=True)
class Ingredients:
    """One family, and fine-tunings on all tenses that differ in the order of the data alone."""

    family: Family
    states: tuple[State, ...]


def ingredients(context: Context) -> dict[int, Ingredients]:
    """Fine-tune the base of every seed three times on all tenses."""
    made, budget = families(context), context.budget
    first = next(iter(made.values()))
    again = partial(
        trained,
        context,
        first.spec,
        context.folder / "soup",
        tenses=tuple(first.experts),
        n_steps=budget.sizes["n_fine"] * len(first.experts),
        rate=FINE * budget.learning_rates[0],
        start={seed: family.base for seed, family in made.items()},
    )
    others = [again(name=f"order-{i}", order=i) for i in range(1, N_INGREDIENTS)]
    return {
        seed: Ingredients(family, (family.multi, *(states[seed] for states in others)))
        for seed, family in made.items()
    }


def mean_of(states: tuple[State, ...]) -> State:
    """The plain mean, tensor by tensor."""
    alike = [1.0] * len(states)
    return {name: linear([s[name] for s in states], weights=alike) for name in states[0]}


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """One model of one seed, on the test split; `one` is the mean over the ingredients."""
    found: Ingredients = context.shared[seed]
    if arm.id == "one":
        alone = [measures(found.family, state) for state in found.states]
        return {
            metric: statistics.fmean(m[metric] for m in alone)  # type: ignore[misc]  # no curves
            for metric in ("skill", "normalised", "retained")
        }
    states = found.states if arm.id == "soup" else tuple(found.family.experts.values())
    return measures(found.family, mean_of(states))


EXPERIMENT = Experiment(
    id="linear",
    technique="linear",
    question="Is the mean of several fine-tunings better than one of them?",
    expectation=Expectation(
        statement="Fine-tunings of one base on one task lie in one basin: their mean is better "
        "than an ingredient. Of different tasks a mean is half of each.",
        source=WORTSMAN_2022,
        refuted_if="the mean of three is not better than one by a point, or the mean of experts "
        "on different tenses is no worse by ten",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=MATCHED,
    arms=(
        Arm(id="one", label="one fine-tuning on all tenses"),
        Arm(id="soup", label="mean of three, in other orders"),
        Arm(id="apart", label="mean of experts, a tense each"),
    ),
    metrics=(SKILL, NORMALISED, RETAINED),
    claims=(superior(SKILL, "soup", by=0.01), worse(SKILL, "apart", by=0.1)),
    budgets=budgets(),
    predicted=predicted,
    setup=ingredients,
    means={
        "confirmed": "A soup is a free gain where several runs of one task exist; it does not "
        "join tasks.",
        "refuted": "Means of runs on one task change little at this size, or means of experts "
        "lose less than thought.",
    },
)
