"""Dropped by chance or by size, then elected: DARE with TIES beside TIES, each at its best."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from worthit.lab.claims import superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Measures
from worthit.lab.experiments._merging import (
    MATCHED,
    NORMALISED,
    QUICK,
    RETAINED,
    SKILL,
    Family,
    State,
    budgets,
    chosen,
    families,
    measures,
    merged,
    predicted,
    weights_of,
)
from worthit.lab.experiments.ties import DENSITIES, LAMBDAS, elected
from worthit.merge.dare import dare_ties
from worthit.techniques.merging._checkpoints import YU_2023


def drawn(family: Family, density: float, scale: float, seed: int) -> State:
    """The base with the elected mean of task vectors that were thinned by chance."""
    weights = weights_of(family)
    return merged(
        family,
        dare_ties,
        weights=weights,
        densities=[density] * len(weights),
        scale=scale,
        seed=seed,
        normalize=True,
    )


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """One merge of one seed, at the knobs that validation chooses."""
    family: Family = context.shared[seed]

    def make(density: float, scale: float) -> State:
        if arm.id == "ties":
            return elected(family, density, scale)
        return drawn(family, density, scale, seed)

    tries = [{"density": d, "scale": s} for d, s in product(DENSITIES, LAMBDAS)]
    state, _ = chosen(family, tries, make)
    return measures(family, state)


EXPERIMENT = Experiment(
    id="dare-ties",
    technique="dare-ties",
    question="Is dropping by chance before an election better than trimming by size?",
    expectation=Expectation(
        statement="DARE before TIES often beats TIES alone, in language models whose fine-tuning "
        "made small steps.",
        source=YU_2023,
        refuted_if="it is not better by three points at the best density and scale of each",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=MATCHED,
    arms=(
        Arm(id="ties", label="trimmed by size, then elected"),
        Arm(id="dare-ties", label="dropped by chance, then elected"),
    ),
    metrics=(SKILL, NORMALISED, RETAINED),
    claims=(superior(SKILL, "dare-ties"),),
    budgets=budgets(replace(QUICK, sizes={**QUICK.sizes, "n_tasks": 3}, setup_seconds=60.0)),
    predicted=predicted,
    setup=families,
    means={
        "confirmed": "Chance keeps the small entries that trimming loses, and they matter.",
        "refuted": "With steps this large chance is no better a judge of entries than their size.",
    },
)
