"""Erasing five tenses from states: what a linear reader finds, what a network does, what it costs.

LEACE promises that no linear reader of the states that it was fitted to beats a constant, at the
least change. It promises nothing about other readers.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from worthit.interp.erase import Eraser, edit_size, inlp, leace, mean_projection
from worthit.interp.probe import fit_probe
from worthit.lab.claims import Metric, at_least, at_most, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments import _inside as inside
from worthit.lab.predict import unseen
from worthit.techniques.interpretability.nullspace_projection import BELROSE_2023

LINEAR = Metric(id="linear", name="accuracy of a linear probe", margin=0.05)
NETWORK = Metric(id="network", name="accuracy of a small network", margin=0.05)
SIZE = Metric(id="size", name="share of the variance that is changed", margin=0.02)


def reads(x: Tensor, z: Tensor, seed: int) -> float:
    """Held-out accuracy of a network of one hidden layer of 64."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-8)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    fit, held = order[len(x) // 4 :], order[: len(x) // 4]
    network = MLPClassifier((64,), alpha=1e-2, max_iter=300, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(x[fit].numpy(), z[fit].numpy())
    return float(network.score(x[held].numpy(), z[held].numpy()))


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Erase from the states of all questions, and read what is left."""
    rows = inside.asked("identify")
    x = inside.at_answer(context.shared[seed], rows).double()
    tenses = sorted({e.tense for e in rows})
    z = torch.tensor([tenses.index(e.tense) for e in rows])
    erasers: dict[str, Eraser | None] = {"none": None}
    if arm.id == "means":
        erasers[arm.id] = mean_projection(x, z)
    elif arm.id == "inlp":
        erasers[arm.id] = inlp(x, z, n_rounds=4)
    elif arm.id == "leace":
        erasers[arm.id] = leace(x, z)
    eraser = erasers[arm.id]
    y = x if eraser is None else eraser(x)
    return {
        "linear": fit_probe(y, z).accuracy(y, z),
        "network": reads(y, z, seed),
        "size": 0.0 if eraser is None else edit_size(eraser, x),
        "rank": 0.0 if eraser is None else float(eraser.rank),
    }


EXPERIMENT = Experiment(
    id="nullspace-projection",
    technique="nullspace-projection",
    question="Is a tense gone once LEACE has erased it?",
    expectation=Expectation(
        statement="No linear classifier does better than a constant on what LEACE leaves, and no "
        "affine erasure changes less; nonlinear readers are not promised to fail.",
        source=BELROSE_2023,
        refuted_if="a linear probe still finds it, or projecting out means changes less",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",),
        because="the same states; linear probes are judged where they and LEACE were fitted, which "
        "is where the promise holds, the network on states held out from it",
    ),
    arms=(
        Arm(id="none", label="states as they are"),
        Arm(id="means", label="means projected out"),
        Arm(id="inlp", label="INLP, 4 rounds"),
        Arm(id="leace", label="LEACE"),
    ),
    metrics=(LINEAR, NETWORK, SIZE),
    claims=(
        # The most frequent of five tenses has little more than a fifth.
        at_most(LINEAR, "leace", 0.3),
        at_least(LINEAR, "none", 0.6),
        superior(SIZE, "leace", against="means", by=0.0),
        at_least(NETWORK, "leace", 0.5),
    ),
    budgets=inside.BUDGETS,
    predicted=lambda setting: unseen(setting, "linear", "network", "size"),
    setup=inside.tutors,
    means={
        "confirmed": "Nothing linear is left, at the least change, and a small network still "
        "reads the tense: LEACE guards against linear readers alone.",
        "refuted": "LEACE's promise is about the states that it was fitted to and about linear "
        "readers; one of the parts that go beyond it did not hold here.",
    },
)
