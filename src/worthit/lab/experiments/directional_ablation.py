"""Taking one tense out of the weights: does the future go, and do the other tenses stay?

The direction from all other tenses to the future is ablated wherever the model writes, baked into
its weights; it then names tenses, and conjugates.
"""

from __future__ import annotations

from worthit.interp.directions import difference_in_means, random_like
from worthit.interp.steering import without_direction
from worthit.lab.claims import Metric, no_worse, worse
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments import _inside as inside
from worthit.lab.predict import unseen
from worthit.lab.tasks.grammar_tutor import Example
from worthit.techniques.interpretability.directional_ablation import ARDITI_2024

GONE = Metric(id="future", name="futures recognised", better="higher", margin=0.1)
KEPT = Metric(id="others", name="other tenses recognised", better="higher", margin=0.1)

FORMS = Metric(id="conjugated", name="conjugations that are right", better="higher", margin=0.1)


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Right answers of the ablated model."""
    model = context.shared[seed]
    rows = inside.asked("identify")
    future = [e for e in rows if e.tense == "future"]
    others = [e for e in rows if e.tense != "future"]
    v = difference_in_means(inside.at_answer(model, future), inside.at_answer(model, others))
    if arm.id != "whole":
        model = without_direction(model, v if arm.id == "ablated" else random_like(v, seed))

    def right(some: list[Example]) -> float:
        said = inside.say(model, some)
        return inside.share([a == e.answer for a, e in zip(said, some, strict=True)])

    return {
        "future": right(future),
        "others": right(others),
        "conjugated": right(inside.asked("conjugate")),
    }


EXPERIMENT = Experiment(
    id="directional-ablation",
    technique="directional-ablation",
    question="Does ablating one direction take one tense away, and nothing else?",
    expectation=Expectation(
        statement="Refusal runs through one direction: without it the behaviour is gone, and other "
        "abilities hardly change.",
        source=ARDITI_2024,
        refuted_if="futures are still recognised, or other tenses or conjugating go too",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(what=("nothing",), because="one tutor a seed, with and without a direction"),
    arms=(
        Arm(id="whole", label="as it is"),
        Arm(id="random", label="random direction"),
        Arm(id="ablated", label="future ablated"),
    ),
    metrics=(GONE, KEPT, FORMS),
    claims=(
        worse(GONE, "ablated", by=0.5),
        no_worse(KEPT, "ablated"),
        no_worse(FORMS, "ablated"),
        worse(GONE, "ablated", by=0.3, against="random"),
    ),
    budgets=inside.BUDGETS,
    predicted=lambda setting: unseen(setting, "future", "others", "conjugated"),
    setup=inside.tutors,
    means={
        "confirmed": "One tense is gone and the others stay: it runs through one direction.",
        "refuted": "Most futures are still recognised with their direction gone: in a tutor of "
        "width 64 a tense is carried by more than one direction, unlike refusal in "
        "chat models.",
    },
)
