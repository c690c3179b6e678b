"""Which direction reads a concept in SmolLM2: the difference of means, or a probe's normal?

By how many labelled texts there are, and in a form of text that neither was fitted to; a random
direction is the least that both must beat.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor

from worthit.interp.directions import random_like
from worthit.lab.claims import Metric, no_worse, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Budget, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments import _concepts as concepts
from worthit.lab.predict import unseen
from worthit.lab.tasks.concepts import Example
from worthit.techniques.interpretability.difference_in_means import WU_2025

FEW = Metric(id="few", name="AUROC from 8 texts", better="higher", margin=0.03)
ALL = Metric(id="all", name="AUROC from all texts", better="higher", margin=0.03)
CONCEPTS = ("language", "sentiment", "refusal", "truth")
N_FEW = 8
N_DRAWS = 5


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """In another form, by texts that are fitted to: the mean over draws of few, and over all."""
    subject: concepts.Subject = context.shared
    found: dict[str, dict[int, float]] = {}
    for concept in context.budget.sizes["concepts"]:
        split = concepts.split(concept, seed)
        judged = next(iter(split.other.values()))
        x, y = (subject.of(concept, rows)[concepts.MIDDLE] for rows in (split.fit, judged))
        z, w = concepts.labels(split.fit), concepts.labels(judged)
        by_number: dict[int, float] = {}
        for n in (N_FEW, 16, len(split.fit)):
            shares = []
            for draw in range(N_DRAWS if n < len(split.fit) else 1):
                some = drawn(split.fit, n, seed=100 * seed + draw)
                reader = reading(arm.id, x[some], z[some], seed=100 * seed + draw)
                shares.append(concepts.judged(reader, y, w))
            by_number[n] = concepts.mean(shares)
        found[concept] = by_number
    few = {c: by_number[N_FEW] for c, by_number in found.items()}
    whole = {c: by_number[max(by_number)] for c, by_number in found.items()}
    return {
        "few": concepts.mean(few.values()),
        "all": concepts.mean(whole.values()),
        **{f"few: {c}": v for c, v in few.items()},
        **{f"all: {c}": v for c, v in whole.items()},
    }


def drawn(rows: list[Example], n: int, *, seed: int) -> Tensor:
    """Row numbers of `n` texts, as many of either side, each pair whole."""
    pairs = [i for i, row in enumerate(rows) if row.is_positive]
    chosen = random.Random(seed).sample(pairs, min(n // 2, len(pairs)))
    # The negative text of a pair follows the positive one.
    return torch.tensor([i + side for i in chosen for side in (0, 1)])


def reading(kind: str, x: Tensor, z: Tensor, *, seed: int) -> concepts.Reader:
    """A reader of one direction."""
    if kind == "probe":
        return concepts.probe_reader(x, z)
    if kind == "means":
        return concepts.means_reader(x, z)
    v = random_like(x[0].double(), seed)
    return lambda y: y.double() @ v


QUICK = Budget(n_seeds=5, sizes={"concepts": CONCEPTS}, seconds=2.0, setup_seconds=80.0)
EXPERIMENT = Experiment(
    id="reading-directions",
    technique="difference-in-means",
    question="Which direction reads a concept from few texts: the difference of means, or a "
    "probe's normal?",
    expectation=Expectation(
        statement="For detecting concepts the difference of means is as good as anything that is "
        "fitted, and needs no fitting.",
        source=WU_2025,
        refuted_if="a logistic probe reads better by 0.03, from eight texts or from all, or a "
        "random direction comes within 0.1",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",),
        because="the same states after layer 15, the same texts to fit and to judge; AUROC, so "
        "that no threshold is in it",
    ),
    arms=(
        Arm(id="probe", label="normal of a probe"),
        Arm(id="random", label="random direction"),
        Arm(id="means", label="difference in means"),
    ),
    metrics=(FEW, ALL),
    claims=(
        no_worse(FEW, "means"),
        no_worse(ALL, "means"),
        superior(FEW, "means", by=0.1, against="random"),
    ),
    budgets={
        "smoke": replace(
            QUICK, n_seeds=2, sizes={"concepts": ("language",)}, seconds=1.0, setup_seconds=8.0
        ),
        "quick": QUICK,
        "full": replace(QUICK, n_seeds=20),
    },
    predicted=lambda setting: unseen(setting, "few", "all"),
    setup=concepts.prepared,
    means={
        "confirmed": "Subtracting two means reads concepts as well as a regression, in texts of "
        "another form too: fit a probe only where a threshold or a probability is wanted.",
        "refuted": "The regression reads better: means follow whatever varies most between the two "
        "kinds of text, and with few texts or unequal variances that is not only the concept.",
    },
)
