"""DPO on verb forms that are right or wrong: what is ranked better, and what is still said.

The loss is a margin. On a half-learned tutor the margin is cheaply had by making both answers less
likely; and where longer answers win every pair, length is an answer to the loss too.
"""

from __future__ import annotations

from worthit.align import DPO
from worthit.lab.claims import Metric, at_most, superior, worse
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Measures
from worthit.lab.experiments._preferences import (
    BOTH_FELL,
    BUDGETS,
    CHOSEN,
    FINE_TUNING,
    MARGIN,
    PREFERENCES,
    RANKED,
    REJECTED,
    RIGHT,
    SEPARATE,
    half_learned,
    on_pairs,
    on_shown,
    pairs_of,
    predicted,
    read,
    shown,
    start,
    steps,
)
from worthit.techniques.alignment._preferences import RAZIN_2024

SHORTER = Metric(
    id="shorter_ranked",
    name="pairs ranked right whose right form is the shorter",
    better="higher",
    margin=0.05,
)


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Fine-tune on right forms, or learn from pairs of right and wrong ones."""
    model, reference = start(context, seed), start(context, seed)
    if arm.id == "fine-tuned":
        on_shown(model, shown("train"), steps(context, FINE_TUNING), seed)
    else:
        longer = True if arm.id == "longer" else None
        pairs = pairs_of("train", seed, n_each=2, longer=longer)
        on_pairs(model, pairs, DPO(), steps(context, PREFERENCES), seed)
    short = read(model, reference, pairs=pairs_of("held-out", 1, n_each=2, longer=False))
    return {**read(model, reference), "shorter_ranked": short["ranked"]}


EXPERIMENT = Experiment(
    id="dpo",
    technique="dpo",
    question="Does DPO on verified pairs teach right verb forms, or only to rank them?",
    expectation=Expectation(
        statement="Held-out pairs are ranked better than by further fine-tuning, and the chosen "
        "answers become less likely all the same, so that fewer forms are right: likelihood "
        "displacement. Where the longer answer wins every pair, shorter right ones are ranked "
        "worse.",
        source=RAZIN_2024,
        refuted_if="pairs are not ranked better, chosen answers keep their likelihood, or bias of "
        "length costs shorter right answers nothing",
        worth_it=False,
    ),
    how=Custom(run=run),
    matched=SEPARATE,
    arms=(
        Arm(id="fine-tuned", label="right forms alone"),
        Arm(id="dpo", label="pairs"),
        Arm(id="longer", label="pairs that the longer wins"),
    ),
    metrics=(RIGHT, RANKED, CHOSEN, REJECTED, MARGIN, BOTH_FELL, SHORTER),
    claims=(
        superior(RANKED, "dpo", by=0.0),
        at_most(CHOSEN, "dpo", -0.5),
        worse(RIGHT, "dpo"),
        worse(SHORTER, "longer", against="dpo"),
    ),
    budgets=BUDGETS,
    predicted=predicted("right", "ranked", "chosen_change"),
    setup=half_learned,
    means={
        "confirmed": "The margin grows by making both answers less likely, the wrong one more so: "
        "a better judge of verb forms, and a worse speaker. Where right answers can be shown, "
        "show them first.",
    },
)
