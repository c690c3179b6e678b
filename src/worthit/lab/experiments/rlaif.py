"""Labels of a judge of known quality in place of verified ones; one order of answers or both.

The judge is planted: its opinion of a pair is right with probability q, and it likes what it reads
first. So what is measured is the method, not what some small model knows of Spanish.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from worthit.align import DPO, Pair
from worthit.align.rlaif import OPTIONS, both_orders, label
from worthit.lab.claims import Metric, no_worse, superior, worse
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Measures
from worthit.lab.experiments._preferences import (
    BUDGETS,
    CHOSEN,
    MARGIN,
    PREFERENCES,
    RANKED,
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
from worthit.techniques.alignment._preferences import LEE_2023

# Log-odds of an opinion, and of the place at the front: in one order the place decides.
OPINION, PLACE = 1.5, 2.0
LABELS_RIGHT = Metric(id="labels_right", name="labels that are right", better="higher", margin=0.05)


class Planted:
    """A judge that is right about a pair with probability `q`, and prefers the first place."""

    def __init__(self, q: float, better: Sequence[str], seed: int) -> None:
        drawn = random.Random(seed)
        self.liked = {text for text in better if drawn.random() < q}

    def likelihoods(self, prompts: Sequence[str], options: Sequence[str]) -> list[list[float]]:
        """Log-probabilities of "1" and "2", from who stands where."""
        assert tuple(options) == OPTIONS
        found = []
        for prompt in prompts:
            first, second = prompt.split("|")
            is_right_liked = first in self.liked or second in self.liked
            is_right_first = first.endswith("*")
            opinion = OPINION if is_right_first == is_right_liked else -OPINION
            odds = opinion + PLACE
            found.append([-math.log1p(math.exp(-odds)), -math.log1p(math.exp(odds))])
        return found


def labelled(pairs: Sequence[Pair], q: float, *, has_both: bool, seed: int) -> list[Pair]:
    """`pairs` with the judge's labels: both orders averaged, or the first alone."""
    # What the judge reads: a name for each answer, and a star on the right one.
    right = [f"{i}*" for i in range(len(pairs))]
    wrong = [f"{i}" for i in range(len(pairs))]
    drawn = random.Random(seed + 1)
    judge = Planted(q, right, seed)
    swapped = [drawn.random() < 0.5 for _ in pairs]
    one = [w if s else r for r, w, s in zip(right, wrong, swapped, strict=True)]
    two = [r if s else w for r, w, s in zip(right, wrong, swapped, strict=True)]
    template = "{first}|{second}{prompt}"
    labels = label(judge, [""] * len(pairs), one, two, template=template)
    if not has_both:
        asked = [judge.likelihoods([f"{a}|{b}"], OPTIONS)[0] for a, b in zip(one, two, strict=True)]
        # The same order twice: an average without the swap.
        labels = [both_orders(said, said[::-1]) for said in asked]
    found = []
    for pair, is_swapped, said in zip(pairs, swapped, labels, strict=True):
        is_right = (said.a_is_better > 0.5) != is_swapped
        found.append(
            pair
            if is_right
            else Pair(prompt=pair.prompt, chosen=pair.rejected, rejected=pair.chosen)
        )
    return found


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """DPO on labels of a judge."""
    model, reference = start(context, seed), start(context, seed)
    pairs = pairs_of("train", seed, n_each=2)
    labels = labelled(pairs, arm.options["q"], has_both=arm.options["both"], seed=seed)
    agreed = sum(a == b for a, b in zip(pairs, labels, strict=True)) / len(pairs)
    on_pairs(model, labels, DPO(), steps(context, PREFERENCES), seed)
    return {**read(model, reference), "labels_right": agreed}


EXPERIMENT = Experiment(
    id="rlaif",
    technique="rlaif",
    question="How good must a judge be, and what is asking in both orders worth?",
    expectation=Expectation(
        statement="Labels of a judge that is right nine times in ten do as well as verified ones, "
        "those of one that is right six times in ten do not; and a judge that likes the first "
        "place is of use in both orders alone.",
        source=LEE_2023,
        refuted_if="nine in ten costs 5 points of ranking, six in ten costs none, or one order is "
        "as good as both",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=SEPARATE,
    arms=(
        Arm(id="verified", label="verified labels", options={"q": 1.0, "both": True}),
        Arm(id="nine", label="judge right in 90 %", options={"q": 0.9, "both": True}),
        Arm(id="six", label="judge right in 60 %", options={"q": 0.6, "both": True}),
        Arm(id="one-order", label="90 %, one order", options={"q": 0.9, "both": False}),
    ),
    metrics=(RANKED, LABELS_RIGHT, RIGHT, CHOSEN, MARGIN),
    claims=(
        no_worse(RANKED, "nine"),
        worse(RANKED, "six", by=0.0),
        superior(RANKED, "nine", by=0.0, against="one-order"),
    ),
    budgets=BUDGETS,
    predicted=predicted("ranked", "right"),
    setup=half_learned,
    means={
        "confirmed": "Nine labels right in ten are as good as verified ones, six in ten are not; "
        "a judge that likes the first place is worth nothing in one order, and all it knows in "
        "both.",
    },
)
