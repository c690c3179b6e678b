"""An L1 autoencoder against principal directions: does it find what was planted, and each time?

Two initialisations on the same rows say how much of what is found is the data's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from worthit.interp.sae.probes import agreement, recovery, single
from worthit.lab.claims import Metric, at_least, at_most, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment
from worthit.lab.experiments._dictionaries import (
    ABSORBED,
    BUDGETS,
    EXPLAINED,
    FACTORS,
    HALF,
    L0,
    L1,
    MATCHED,
    METRICS,
    RECOVERED,
    both,
    in_planted,
    in_tutor,
    made,
    planted,
    setup,
    trained,
)
from worthit.techniques.interpretability._autoencoder import HUBEN_2023

AGREED = Metric(
    id="agreed", name="share of latents that another start finds too", better="higher", margin=0.05
)


def run(context: Context, arm: Arm, seed: int) -> Mapping[str, float]:
    """Principal directions, or the autoencoder twice."""
    if arm.id == "pca":
        return {**pca_planted(context, seed), **pca_tutor(context, seed)}
    found = both(in_planted(context.budget, arm, seed), in_tutor(context, arm, seed))
    return {**found, "agreed": agreed(context, arm, seed)}


def agreed(context: Context, arm: Arm, seed: int) -> float:
    """How many latents two starts have in common, on the same rows in the same order."""
    sizes = context.budget.sizes
    world = planted(sizes["d"], sizes["m"], seed)
    x, _ = world.rows(8 * HALF, torch.Generator().manual_seed(10_000 + seed))
    used = []
    for start in (seed, seed + 1000):
        generator = torch.Generator().manual_seed(seed)

        def stream(generator: torch.Generator = generator) -> Iterator[Tensor]:
            while True:
                yield world.rows(HALF, generator)[0]

        sae = made(arm, sizes["d"], sizes["width"], start)
        trained(sae, stream(), context.budget)
        used.append(sae.directions()[(sae.encode(x) > 0).any(0)])
    return agreement(*used)


def pca_planted(context: Context, seed: int) -> dict[str, float]:
    """Principal directions of a planted world; the largest coordinates of each row are kept."""
    sizes = context.budget.sizes
    world = planted(sizes["d"], sizes["m"], seed)
    x, _ = world.rows(16 * HALF, torch.Generator().manual_seed(seed))
    test, _ = world.rows(8 * HALF, torch.Generator().manual_seed(10_000 + seed))
    mean, axes = x.mean(0), torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh
    explained = kept(test - mean, axes)
    both = torch.cat([axes, -axes])
    return {"explained": explained, "recovered": recovery(both, world.directions), "missed": 0.0}


def kept(x: Tensor, axes: Tensor) -> float:
    """What the `L0` largest coordinates of each centred row explain of its variance."""
    z = x @ axes.T
    best = z.abs().topk(L0, dim=-1).indices
    sparse = torch.zeros_like(z).scatter(-1, best, z.gather(-1, best))
    return 1 - float((x - sparse @ axes).square().sum() / (x - x.mean(0)).square().sum())


def pca_tutor(context: Context, seed: int) -> dict[str, float]:
    """Principal directions of the tutor's stream, each in both senses, as if they were latents."""
    asked = context.shared
    mean = asked.tokens.mean(0)
    axes = torch.linalg.svd(asked.tokens - mean, full_matrices=False).Vh
    z = (asked.rows - mean) @ axes.T
    latents = torch.cat([z, -z], dim=1).relu()
    scores = [single(latents, labels)[1] for labels in asked.labels.values()]
    return {
        "tutor_explained": kept(asked.tokens - mean, axes),
        "factors": sum(scores) / len(scores),
    }


EXPERIMENT = Experiment(
    id="sae",
    technique="sae",
    question="Does an L1 autoencoder find the directions that inputs are made of, and the same "
    "ones each time?",
    expectation=Expectation(
        statement="It finds many directions that principal components do not; but not the same "
        "set from another start, and implied features are absorbed.",
        source=HUBEN_2023,
        refuted_if="it finds less than 20 points more of the planted directions than principal "
        "components do, starts agree on 90 % of latents, or absorption stays below a fifth",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=MATCHED,
    arms=(Arm(id="pca", label="principal directions"), L1),
    metrics=(RECOVERED, AGREED, *(m for m in METRICS if m is not RECOVERED)),
    claims=(
        superior(RECOVERED, "standard", by=0.2),
        superior(EXPLAINED, "standard", by=0.0),
        superior(FACTORS, "standard", by=0.0),
        at_most(AGREED, "standard", 0.9),
        at_least(ABSORBED, "standard", 0.2),
    ),
    budgets={
        name: replace(budget, seconds=1.5 * (budget.seconds or 0.0))
        for name, budget in BUDGETS.items()
    },
    setup=setup,
    means={
        "confirmed": "It finds what principal components cannot; a third or so of its latents "
        "are another set from another start, and parents vanish into their children: read "
        "features as one decomposition of several.",
    },
)
