"""Position interpolation against reading on and against fine-tuning without it."""

from __future__ import annotations

from worthit.lab.claims import no_worse, superior
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._rope_scaling import (
    AT_ONCE,
    BUDGETS,
    HOW,
    MATCHED,
    SHORT,
    TUNED,
    TUNED_SHORT,
    arm,
    trained,
    unseen,
)
from worthit.techniques.position.position_interpolation import CHEN_2023

EXPERIMENT = Experiment(
    id="position-interpolation",
    technique="position-interpolation",
    question="Is it worth squeezing positions into the trained range before fine-tuning at four "
    "times the length?",
    expectation=Expectation(
        statement="After a short fine-tuning the squeezed model is better at the new length than "
        "one fine-tuned with positions that it has never seen, and hardly worse at the old one.",
        source=CHEN_2023,
        refuted_if="fine-tuning alone reaches a loss as low at four times the length, or the "
        "squeezed model loses 0.1 nats at the old length",
        worth_it=True,
    ),
    how=HOW,
    matched=MATCHED,
    arms=(
        arm(None, "as trained"),
        arm("linear", "interpolated"),
    ),
    metrics=(TUNED, AT_ONCE, SHORT, TUNED_SHORT),
    claims=(
        superior(TUNED, "linear", by=0.0),
        no_worse(TUNED_SHORT, "linear", margin=0.1),
    ),
    budgets=BUDGETS,
    predicted=unseen,
    setup=trained,
    means={
        "refuted": "Better at the new length than fine-tuning alone, as promised, but forty steps "
        "do not bring the old length back: fast rotations, which tell neighbours apart, are "
        "divided with the slow ones. The methods that spare them are better at both.",
        "confirmed": "Known angles are easier to get used to than unknown ones: squeeze first, "
        "then fine-tune.",
    },
)
