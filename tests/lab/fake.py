"""A fast experiment without a model: numbers from a seeded generator, effects known beforehand."""

from __future__ import annotations

import random
from dataclasses import replace

from worthit.lab.claims import Metric, no_worse, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Budget, Custom, Expectation, Experiment, Matched, Prediction
from worthit.techniques import Source

LOSS = Metric(id="loss", name="loss", margin=0.05, unit="nats")
SECONDS = Metric(id="seconds", name="time", margin=0.1, unit="s", scale="ratio")
SOURCE = Source(cite="Nobody 2024", title="Nothing", id="none")


def run(context: Context, arm: Arm, seed: int) -> dict[str, object]:
    """Seeds move both arms alike; the variant halves the time and leaves the loss."""
    shared, own = random.Random(seed), random.Random(f"{arm.id}{seed}")
    loss = 1 + shared.gauss(0, 0.5) + own.gauss(0, 0.01)
    seconds = arm.options["seconds"] * own.uniform(0.95, 1.05)
    return {"loss": loss, "seconds": seconds, "course": ((0.0, 2.0), (1.0, loss))}


BUDGET = Budget(n_seeds=5, seconds=0.01)
FAKE = Experiment(
    id="fake",
    technique="gqa",
    question="Does the variant save time?",
    expectation=Expectation(
        statement="Half the time, the same loss.", source=SOURCE, refuted_if="It is slower."
    ),
    how=Custom(run=run),
    matched=Matched(what=("nothing",), because="nothing is trained"),
    arms=(
        Arm(id="plain", label="plain", options={"seconds": 2.0}),
        Arm(id="quick", label="quick", options={"seconds": 1.0}),
    ),
    metrics=(SECONDS, LOSS),
    claims=(superior(SECONDS, "quick", by=0.3), no_worse(LOSS, "quick")),
    budgets={"smoke": replace(BUDGET, n_seeds=3), "quick": BUDGET, "full": BUDGET},
    predicted=lambda setting: [
        Prediction(
            metric="seconds", arm="quick", value=0.5, low=0.45, high=0.55, basis="by design"
        ),
        Prediction(metric="loss", arm="quick", value=None, basis="cost cannot see it"),
    ],
)
