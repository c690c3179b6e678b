"""A deeper model out of its own layers: stacked, and after some training, beside the original."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from worthit.lab.claims import superior, worse
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments._merging import (
    FINE,
    KNOWN,
    QUICK,
    TENSES,
    State,
    budgets,
    by_tense,
    mean,
    small,
    trained,
)
from worthit.lab.experiments._merging import Family as Models
from worthit.lab.metrics import ACCURACY
from worthit.lab.predict import unseen
from worthit.merge.passthrough import passthrough
from worthit.spec.model import ModelSpec
from worthit.techniques import Source

KIM_2023 = Source(
    cite="Kim et al. 2023",
    title="SOLAR 10.7B: Scaling Large Language Models with Simple yet Effective Depth Up-Scaling",
    id="arXiv:2312.15166",
    where="section 2",
)
N_LAYERS = 4
# Of 32 layers SOLAR takes the first 24 and the last 24; of four, the first and the last three.
TAKEN = (0, 1, 2, 1, 2, 3)
ALL = (*KNOWN, *TENSES)
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Depths:
    """The models of one seed, by the names of the arms."""

    specs: dict[str, ModelSpec]
    states: dict[str, State]


def deeper(spec: ModelSpec) -> ModelSpec:
    """The spec with the layers that are taken, in their order."""
    return replace(spec, layers=tuple(spec.layers[i] for i in TAKEN))


def stacked(state: State) -> State:
    """Every tensor outside the layers as it is, and of the layers those that are taken."""
    made = {}
    for name, tensor in state.items():
        found = _LAYER.search(name)
        if found is None:
            made[name] = passthrough(tensor)
            continue
        for place, taken in enumerate(TAKEN):
            if int(found[0]) == taken:
                made[_LAYER.sub(str(place), name, count=1)] = passthrough(tensor)
    return made


def depths(context: Context) -> dict[int, Depths]:
    """Train the original of every seed, stack it, and train both a little more."""
    budget = context.budget
    spec = small(budget)
    deep = deeper(spec)
    rate = budget.learning_rates[0]
    made: Callable[..., dict[int, State]] = partial(
        trained, context, folder=context.folder / "depths", tenses=ALL
    )
    first = made(spec=spec, name="first", n_steps=budget.n_steps, rate=rate, start=None)
    raw = {seed: stacked(state) for seed, state in first.items()}
    n_more = budget.sizes["n_fine"]
    whole = made(spec=spec, name="whole", n_steps=n_more, rate=FINE * rate, start=first)
    healed = made(spec=deep, name="healed", n_steps=n_more, rate=FINE * rate, start=raw)
    specs = {"whole": spec, "raw": deep, "healed": deep}
    return {
        seed: Depths(specs, {"whole": whole[seed], "raw": raw[seed], "healed": healed[seed]})
        for seed in context.seeds
    }


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """One model of one seed, on the test split."""
    found: Depths = context.shared[seed]
    state = found.states[arm.id]
    model = Models(
        spec=found.specs[arm.id], base=state, experts=dict.fromkeys(TENSES, state), multi=state
    )
    return {"accuracy": mean(by_tense(model, state, "test"), ALL)}


EXPERIMENT = Experiment(
    id="passthrough",
    technique="passthrough",
    question="Is a model better for having some of its layers twice?",
    expectation=Expectation(
        statement="Stacked layers are worse at first; further training recovers that quickly and "
        "goes beyond the original.",
        source=KIM_2023,
        refuted_if="the stack is no worse before training, or no better than the original after "
        "as many further steps",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",),
        because="as many further steps for the original as for the stack, which has half as many "
        "layers more and takes half as long again for each",
    ),
    arms=(
        Arm(id="whole", label="4 layers, trained further"),
        Arm(id="raw", label="6 of its layers, as they are"),
        Arm(id="healed", label="6 of its layers, trained further"),
    ),
    metrics=(ACCURACY,),
    claims=(worse(ACCURACY, "raw", by=0.1), superior(ACCURACY, "healed", by=0.01)),
    budgets=budgets(replace(QUICK, sizes={**QUICK.sizes, "n_layers": N_LAYERS})),
    predicted=lambda setting: unseen(setting, "accuracy"),
    setup=depths,
    means={
        "confirmed": "Depth by copying pays, but only with training after it.",
        "refuted": "The stack breaks what was learnt, and as many steps bring it back to the "
        "original rather than beyond it, at half as much again a step.",
    },
)
