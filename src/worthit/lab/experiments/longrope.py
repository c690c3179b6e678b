"""LongRoPE's searched factors against formulas, without fine-tuning."""

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
    arm,
    trained,
    unseen,
)
from worthit.techniques.position.longrope import DING_2024

EXPERIMENT = Experiment(
    id="longrope",
    technique="longrope",
    question="Is a search for every pair's stretch worth it over the formulas?",
    expectation=Expectation(
        statement="Without fine-tuning the searched factors beat interpolation, NTK-aware scaling "
        "and YaRN at the long length, and change nothing at the short one.",
        source=DING_2024,
        refuted_if="a formula has as low a loss at four times the length on text that the search "
        "did not see",
        worth_it=True,
    ),
    how=HOW,
    matched=MATCHED,
    arms=(
        arm("ntk", "larger base"),
        arm("longrope", "searched"),
        arm("yarn", "YaRN"),
        arm("linear", "interpolated"),
        arm(None, "as trained"),
    ),
    metrics=(AT_ONCE, SHORT, TUNED),
    claims=(
        superior(AT_ONCE, "longrope", by=0.0),
        superior(AT_ONCE, "longrope", by=0.0, against="yarn"),
        superior(AT_ONCE, "longrope", by=0.0, against="linear"),
        no_worse(SHORT, "longrope", margin=0.001, against="plain"),
    ),
    budgets=BUDGETS,
    predicted=unseen,
    setup=trained,
    means={
        "confirmed": "Forty evaluations find a better stretch than any formula, for every model "
        "its own: worth it where the model is not to be fine-tuned.",
    },
)
