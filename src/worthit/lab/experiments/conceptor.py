"""Conceptors beside adding a difference of means: which moves the tense that the tutor reads?

From each tense to each other. A conceptor lets through what states of the other tense share, around
the origin as in its paper, around the mean of all states, or with what the first tense occupies
taken out: AND NOT.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from worthit.interp.conceptor import Conceptor, conceptor
from worthit.interp.directions import difference_in_means
from worthit.lab.claims import Metric, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments import _inside as inside
from worthit.lab.experiments.difference_in_means import pushed
from worthit.lab.predict import unseen
from worthit.lab.tasks._verbs import TENSES
from worthit.techniques.interpretability.conceptor import POSTMUS_2024

MOVED = Metric(id="moved", name="share of answers in the other tense", better="higher", margin=0.1)
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
APERTURES = (0.1, 0.3, 1.0, 3.0)
GAINS = (1.0, 2.0, 4.0)


def let_through(soft: Conceptor, centre: Tensor, gain: float) -> inside.Shift:
    """Through a conceptor, and back to the length that it takes away."""
    return lambda h: centre + gain * (soft(h) - centre)


def shifts(kind: str, x: Tensor, y: Tensor, centre: Tensor) -> list[inside.Shift]:
    """Every setting of an arm, from states `x` to states `y`."""
    if kind == "sum":
        v = difference_in_means(y, x)
        return [pushed(v, strength) for strength in STRENGTHS]
    around = torch.zeros_like(centre) if kind == "conceptor" else centre
    found = []
    for aperture, gain in product(APERTURES, GAINS):
        soft = conceptor(y, aperture=aperture, centre=around)
        if kind == "without":
            soft = soft & ~conceptor(x, aperture=aperture, centre=around)
        found.append(let_through(soft, around, gain))
    return found


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """One setting for all pairs of tenses, chosen on the verbs that were fitted."""
    model = context.shared[seed]
    fit, held = {}, {}
    for tense in TENSES:
        fit[tense], held[tense] = inside.halves(inside.asked("identify", tense=tense), seed)
    at = {tense: inside.at_answer(model, rows) for tense, rows in fit.items()}
    centre = torch.cat(list(at.values())).mean(0)
    tuned: dict[int, float] = {}
    judged: dict[int, float] = {}
    for one, other in inside.tense_pairs():
        for i, shift in enumerate(shifts(arm.id, at[one], at[other], centre)):
            tuned[i] = tuned.get(i, 0.0) + inside.moved(model, fit[one], shift, other)
            judged[i] = judged.get(i, 0.0) + inside.moved(model, held[one], shift, other)
    best = max(tuned, key=lambda i: tuned[i])
    return {"moved": judged[best] / len(inside.tense_pairs())}


EXPERIMENT = Experiment(
    id="conceptor",
    technique="conceptor",
    question="Does a conceptor steer better than adding a difference of means?",
    expectation=Expectation(
        statement="Steering by conceptors does better than adding means, on functions and on their "
        "compositions.",
        source=POSTMUS_2024,
        refuted_if="adding the difference moves as many answers",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",),
        because="one tutor a seed; conceptors get twelve settings to choose from, additions four",
    ),
    arms=(
        Arm(id="sum", label="difference added"),
        Arm(id="conceptor", label="conceptor"),
        Arm(id="centred", label="around the mean"),
        Arm(id="without", label="target AND NOT source"),
    ),
    metrics=(MOVED,),
    claims=(superior(MOVED, "conceptor"),),
    budgets=inside.BUDGETS,
    predicted=lambda setting: unseen(setting, "moved"),
    setup=inside.tutors,
    means={
        "confirmed": "The cloud of states says more than its mean: a conceptor steers better.",
        "refuted": "Adding the difference moves far more answers: with some fifty states of "
        "width 64 a conceptor mostly damps what it did not see, at a thousand times "
        "the arithmetic.",
    },
)
