"""KTO from ratings: nine in ten good answers dropped, and no fine-tuning first."""

from __future__ import annotations

from worthit.align import DPO, KTO
from worthit.lab.claims import no_worse, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Measures
from worthit.lab.experiments._preferences import (
    BOTH_FELL,
    BUDGETS,
    CHOSEN,
    MARGIN,
    PREFERENCES,
    RANKED,
    RIGHT,
    SEPARATE,
    fresh,
    half_learned,
    on_pairs,
    on_ratings,
    pairs_of,
    predicted,
    rated_of,
    read,
    start,
    steps,
)
from worthit.techniques.alignment._preferences import ETHAYARAJH_2024

# From nothing there is more to learn; of the rates tried, both methods ranked best at this one.
FROM_NOTHING = 3e-3


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """DPO on pairs, or KTO on the same answers rated one by one."""
    is_fresh = arm.options.get("is_fresh", False)
    begin = fresh if is_fresh else start
    model, reference = begin(context, seed), begin(context, seed)
    pairs = pairs_of("train", seed, n_each=2)
    twice = 2 * context.budget.sizes["updates"]
    rate = steps(context, FROM_NOTHING, n_steps=twice) if is_fresh else steps(context, PREFERENCES)
    if arm.options["method"] == "dpo":
        on_pairs(model, pairs, DPO(), rate, seed)
    else:
        rated = rated_of(pairs, good=arm.options["good"], seed=seed)
        # As many rows an update: two a pair, and each rating with its mismatched one.
        on_ratings(model, rated, KTO.balanced(rated), rate, seed)
    return read(model, reference)


EXPERIMENT = Experiment(
    id="kto",
    technique="kto",
    question="Do ratings do what pairs do, with a tenth of the good ones, and without fine-tuning?",
    expectation=Expectation(
        statement="Nine in ten desirable answers can be dropped and KTO does as well as DPO with "
        "all pairs; and without fine-tuning first right answers are likelier under KTO than under "
        "DPO.",
        source=ETHAYARAJH_2024,
        refuted_if="a tenth of the good answers ranks pairs worse by 5 points, or right answers "
        "are no likelier under KTO from scratch than under DPO from scratch",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=SEPARATE,
    arms=(
        Arm(id="dpo", label="DPO, all pairs", options={"method": "dpo"}),
        Arm(id="kto", label="KTO, all ratings", options={"method": "kto", "good": 1.0}),
        Arm(id="tenth", label="KTO, a tenth of the good", options={"method": "kto", "good": 0.1}),
        Arm(
            id="dpo-fresh",
            label="DPO without fine-tuning",
            options={"method": "dpo", "is_fresh": True},
        ),
        Arm(
            id="kto-fresh",
            label="KTO without fine-tuning",
            options={"method": "kto", "good": 1.0, "is_fresh": True},
        ),
    ),
    metrics=(RANKED, RIGHT, CHOSEN, MARGIN, BOTH_FELL),
    claims=(
        no_worse(RANKED, "kto"),
        no_worse(RANKED, "tenth"),
        no_worse(RIGHT, "tenth"),
        superior(CHOSEN, "kto-fresh", by=0.0, against="dpo-fresh"),
    ),
    budgets=BUDGETS,
    predicted=predicted("ranked", "right"),
    setup=half_learned,
    means={
        "confirmed": "Ratings rank verb forms as well as pairs, even with one good answer in ten.",
        "refuted": "Ratings do not replace pairs here: see which of the claims fell.",
    },
)
