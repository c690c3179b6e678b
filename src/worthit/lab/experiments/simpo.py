"""SimPO's reward is what decoding ranks by; DPO's is not: reward accuracy, and bias of length."""

from __future__ import annotations

from worthit.align import DPO, SimPO
from worthit.lab.claims import no_worse, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Measures
from worthit.lab.experiments._preferences import (
    BOTH_FELL,
    BUDGETS,
    CHOSEN,
    MEAN_RANKED,
    PREFERENCES,
    RIGHT,
    SEPARATE,
    half_learned,
    on_pairs,
    pairs_of,
    predicted,
    read,
    start,
    steps,
)
from worthit.lab.experiments.dpo import SHORTER
from worthit.techniques.alignment._preferences import MENG_2024


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Learn from pairs, with either reward, plain or biased by length."""
    model, reference = start(context, seed), start(context, seed)
    longer = True if arm.options["is_biased"] else None
    pairs = pairs_of("train", seed, n_each=2, longer=longer)
    method = SimPO() if arm.options["method"] == "simpo" else DPO()
    on_pairs(model, pairs, method, steps(context, PREFERENCES), seed)
    short = read(model, reference, pairs=pairs_of("held-out", 1, n_each=2, longer=False))
    return {**read(model, reference), "shorter_ranked": short["mean_ranked"]}


EXPERIMENT = Experiment(
    id="simpo",
    technique="simpo",
    question="Does a reward a token rank held-out answers better than a ratio to a reference?",
    expectation=Expectation(
        statement="By the mean log-probability, which decoding goes by, SimPO ranks more held-out "
        "pairs right than DPO; and bias of length in the pairs costs it less.",
        source=MENG_2024,
        refuted_if="SimPO gains less than 5 points of ranking, or less than 5 points of shorter "
        "right answers after pairs that the longer one wins",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=SEPARATE,
    arms=(
        Arm(id="dpo", label="DPO", options={"method": "dpo", "is_biased": False}),
        Arm(id="simpo", label="SimPO", options={"method": "simpo", "is_biased": False}),
        Arm(
            id="dpo-longer",
            label="DPO, the longer wins",
            options={"method": "dpo", "is_biased": True},
        ),
        Arm(
            id="simpo-longer",
            label="SimPO, the longer wins",
            options={"method": "simpo", "is_biased": True},
        ),
    ),
    metrics=(MEAN_RANKED, RIGHT, CHOSEN, BOTH_FELL, SHORTER),
    claims=(
        superior(MEAN_RANKED, "simpo"),
        no_worse(RIGHT, "simpo"),
        superior(SHORTER, "simpo-longer", against="dpo-longer"),
    ),
    budgets=BUDGETS,
    predicted=predicted("mean_ranked", "right"),
    setup=half_learned,
    means={
        # Written after the run.
        "refuted": "At half the displacement SimPO keeps more forms right than DPO and ranks "
        "pairs no better; where the longer one wins every pair it prefers the longer one as much: "
        "a mean a token does not unlearn what every pair says.",
    },
)
