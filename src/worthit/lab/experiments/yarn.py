"""YaRN against NTK-aware scaling and interpolation, at once and after a short fine-tuning."""

from __future__ import annotations

from dataclasses import replace

from worthit.lab.claims import superior
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
from worthit.techniques.position._positions import PENG_2023_YARN

EXPERIMENT = Experiment(
    id="yarn",
    technique="yarn",
    question="Is blending by wavelength, with sharper attention, better than the two methods it "
    "blends?",
    expectation=Expectation(
        statement="Better than interpolation and NTK-aware scaling at four times the length, with "
        "fine-tuning and without.",
        source=replace(PENG_2023_YARN, where="sections 3.2, 3.4 and 4.3, table 2"),
        refuted_if="either of the two has as low a loss at four times the length, at once or after "
        "as many steps of fine-tuning",
        worth_it=True,
    ),
    how=HOW,
    matched=MATCHED,
    arms=(
        arm("ntk", "larger base"),
        arm("yarn", "YaRN"),
        arm("linear", "interpolated"),
    ),
    metrics=(AT_ONCE, TUNED, SHORT),
    claims=(
        superior(AT_ONCE, "yarn", by=0.0, against="linear"),
        superior(AT_ONCE, "yarn", by=0.0),
        superior(TUNED, "yarn", by=0.0, against="linear"),
        superior(TUNED, "yarn", by=0.0),
    ),
    budgets=BUDGETS,
    predicted=unseen,
    setup=trained,
    means={
        "confirmed": "One formula is best with fine-tuning and without: the one to use where "
        "rotary positions are stretched.",
    },
)
