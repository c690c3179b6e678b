"""Which direction moves a tense: the difference of means, or the normal of a probe?

Both part the two tenses perfectly. A probe's normal is what tells them apart given all that varies
with them; the difference of means is what changes with the tense. Steered at equal length, from
each tense to each other, while the tutor says which tense it reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worthit.interp.directions import difference_in_means, random_like, unit
from worthit.interp.probe import fit_probe
from worthit.lab.claims import Metric, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments import _inside as inside
from worthit.lab.predict import unseen
from worthit.lab.tasks._verbs import TENSES
from worthit.techniques.interpretability.difference_in_means import MARKS_2023

MOVED = Metric(id="moved", name="share of answers in the other tense", better="higher", margin=0.1)
# Lengths of the push, in lengths of the difference of means; the best is chosen on one half.
STRENGTHS = (0.5, 1.0, 2.0, 4.0)


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """From every tense to every other: fitted and tuned on some verbs, judged on others."""
    model = context.shared[seed]
    fit, held = {}, {}
    for tense in TENSES:
        fit[tense], held[tense] = inside.halves(inside.asked("identify", tense=tense), seed)
    at = {tense: inside.at_answer(model, rows) for tense, rows in fit.items()}
    curves: dict[float, list[float]] = {strength: [] for strength in STRENGTHS}
    tuned: dict[float, list[float]] = {strength: [] for strength in STRENGTHS}
    for one, other in inside.tense_pairs():
        v = direction(arm.id, at[one], at[other], seed)
        for strength in STRENGTHS:
            shift = pushed(v, strength)
            tuned[strength].append(inside.moved(model, fit[one], shift, other))
            curves[strength].append(inside.moved(model, held[one], shift, other))
    means = {s: sum(shares) / len(shares) for s, shares in curves.items()}
    best = max(tuned, key=lambda strength: sum(tuned[strength]))
    return {"moved": means[best], "moved by strength": tuple(means.items())}


def direction(kind: str, x: Tensor, y: Tensor, seed: int) -> Tensor:
    """From states `x` to states `y`, as long as the difference of their means."""
    means = difference_in_means(y, x)
    if kind == "random":
        return random_like(means, seed)
    if kind == "probe":
        labels = torch.tensor([0] * len(x) + [1] * len(y))
        normal = fit_probe(torch.cat([x, y]), labels).direction.to(means)
        return unit(normal) * means.norm()
    return means


def pushed(v: Tensor, strength: float) -> inside.Shift:
    """Along `v`."""
    return lambda h: h + strength * v


EXPERIMENT = Experiment(
    id="difference-in-means",
    technique="difference-in-means",
    question="Which direction steers a tense: the difference of means, or a probe's normal?",
    expectation=Expectation(
        statement="Differences of means are more causally implicated in the output than the "
        "normals of logistic probes, though both classify as well.",
        source=MARKS_2023,
        refuted_if="the probe's normal, equally long, moves as many answers",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",),
        because="one tutor a seed serves all arms; pushes are equally long, and each arm's "
        "strength is chosen on the verbs it was fitted to",
    ),
    arms=(
        Arm(id="probe", label="normal of a probe"),
        Arm(id="random", label="random direction"),
        Arm(id="means", label="difference in means"),
    ),
    metrics=(MOVED,),
    claims=(superior(MOVED, "means"), superior(MOVED, "means", against="random")),
    budgets=inside.BUDGETS,
    predicted=lambda setting: unseen(setting, "moved"),
    setup=inside.tutors,
    means={
        "confirmed": "A probe's normal points along what parts two tenses; the difference of "
        "their means points along what the model itself changes: subtract, do not "
        "fit.",
        "refuted": "Here a probe's normal steers as well as the difference of means: the "
        "states of two tenses vary little along anything else.",
    },
)
