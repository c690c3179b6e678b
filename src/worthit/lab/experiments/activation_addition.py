"""How far a push moves answers, and what it costs: strength against fluency and side effects.

From each tense to each other, along the difference of means, while the tutor says which tense it
reads. Fluency is whether the answer is a tense at all; side effects are how the same push, left on,
disturbs conjugating, which nobody meant to change.
"""

from __future__ import annotations

from worthit.interp.directions import difference_in_means, random_like
from worthit.lab.claims import Metric, at_least, superior, worse
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments import _inside as inside
from worthit.lab.experiments.difference_in_means import pushed
from worthit.lab.predict import unseen
from worthit.lab.tasks._verbs import TENSES
from worthit.techniques.interpretability.activation_addition import RIMSKY_2023

MOVED = Metric(id="moved", name="share of answers in the other tense", better="higher", margin=0.1)
FLUENT = Metric(id="fluent", name="share of answers that are a tense", better="higher", margin=0.05)
KEPT = Metric(id="kept", name="conjugations that stay right", better="higher", margin=0.1)


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Verbs that no direction was fitted to."""
    model, strength = context.shared[seed], arm.options["strength"]
    fit, held = {}, {}
    for tense in TENSES:
        fit[tense], held[tense] = inside.halves(inside.asked("identify", tense=tense), seed)
    at = {tense: inside.at_answer(model, rows) for tense, rows in fit.items()}
    tags = {f"<{tense}>" for tense in TENSES}
    moved, fluent = [], []
    for one, other in inside.tense_pairs():
        v = difference_in_means(at[other], at[one])
        v = random_like(v, seed) if arm.options.get("is_random") else v
        said = inside.say(model, held[one], {inside.POINT: pushed(v, strength)}, longest=1)
        moved.append(inside.share([a == f"<{other}>" for a in said]))
        fluent.append(inside.share([a in tags for a in said]))
    v = difference_in_means(at["future"], at["present"])
    v = random_like(v, seed) if arm.options.get("is_random") else v
    rows = inside.asked("conjugate", tense="present")
    said = inside.say(model, rows, {inside.POINT: pushed(v, strength)})
    return {
        "moved": sum(moved) / len(moved),
        "fluent": sum(fluent) / len(fluent),
        "kept": inside.share([a == e.answer for a, e in zip(said, rows, strict=True)]),
    }


EXPERIMENT = Experiment(
    id="activation-addition",
    technique="activation-addition",
    question="How strong must a push be, and what does it cost in fluency and side effects?",
    expectation=Expectation(
        statement="Adding a contrastive direction moves behaviour with its strength, at little "
        "cost to general ability at moderate strengths.",
        source=RIMSKY_2023,
        refuted_if="a push of twice the difference moves less than a third of the answers, or "
        "costs a tenth of fluency or of conjugating",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",), because="one tutor a seed; the control is as long as the push at 2"
    ),
    arms=(
        Arm(id="0", label="as it is", options={"strength": 0.0}),
        Arm(id="1", label="1 x", options={"strength": 1.0}),
        Arm(id="2", label="2 x", options={"strength": 2.0}),
        Arm(id="8", label="8 x", options={"strength": 8.0}),
        Arm(id="random", label="random, 2 x", options={"strength": 2.0, "is_random": True}),
    ),
    metrics=(MOVED, FLUENT, KEPT),
    claims=(
        superior(MOVED, "2", by=0.3),
        superior(MOVED, "2", by=0.3, against="random"),
        at_least(FLUENT, "2", 0.9),
        at_least(KEPT, "2", 0.9),
        worse(FLUENT, "8"),
    ),
    budgets=inside.BUDGETS,
    predicted=lambda setting: unseen(setting, "moved", "fluent", "kept"),
    setup=inside.tutors,
    means={
        "confirmed": "A push of twice the difference moves most answers and leaves the rest alone.",
        "refuted": "The answers that were meant do move, and a random push of that length does "
        "not move them; but left on, the push ruins conjugating, which nobody meant "
        "to change. Steer only where the behaviour is decided, and measure what "
        "else the model does.",
    },
)
