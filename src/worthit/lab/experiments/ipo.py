"""IPO where labels never contradict: a margin to reach beside one that grows for ever."""

from __future__ import annotations

from worthit.align import DPO, IPO, Pairs, displacement
from worthit.align.scores import logps_of
from worthit.lab.claims import Metric, at_most, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Measures
from worthit.lab.experiments._preferences import (
    BOTH_FELL,
    BUDGETS,
    CHOSEN,
    RANKED,
    RIGHT,
    SEPARATE,
    conjugations,
    half_learned,
    on_pairs,
    pairs_of,
    predicted,
    read,
    start,
    steps,
)
from worthit.techniques.alignment._preferences import AZAR_2023

BETA = 0.5
TARGET = 1 / (2 * BETA)
# A faster rate and few pairs: what a loss does in the end is what is asked.
RATE, N_PAIRS = 3e-4, 64
TRAINED = Metric(
    id="trained_margin", name="margin of trained pairs a token", unit="nats", margin=0.25
)
GROWTH = Metric(
    id="growth", name="what the second half adds to that margin", unit="nats", margin=0.1
)


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Learn a few pairs by heart, and then as long again."""
    model, reference = start(context, seed), start(context, seed)
    pairs = pairs_of("train", seed, n_each=1)[:N_PAIRS]
    before = logps_of(reference, [(p.prompt, a) for p in pairs for a in (p.chosen, p.rejected)])
    data = Pairs("forms", pairs, pairs, vocab_size=conjugations().vocab_size)
    method = IPO(beta=BETA) if arm.id == "ipo" else DPO(beta=BETA)
    found = []
    for half in (0, 1):
        recipe = steps(context, RATE, schedule="constant", warmup_steps=0)
        # The reference stays the model before both halves.
        on_pairs(model, pairs, method, recipe, seed + half, reference=before)
        data.reference = {"validation": before.view(-1, 2), "train": before.view(-1, 2)}
        now = displacement(model, data.held_out())
        assert now is not None
        assert now.margin is not None
        found.append(2 * now.margin / (now.chosen_tokens + now.rejected_tokens))
    return {
        **read(model, reference),
        "trained_margin": found[1],
        "growth": found[1] - found[0],
    }


EXPERIMENT = Experiment(
    id="ipo",
    technique="ipo",
    question="Does IPO stop where DPO's margin grows on, when every label is certain?",
    expectation=Expectation(
        statement="With deterministic labels DPO's loss has no minimum and its regularisation is "
        "gone; IPO's margin stays near 1 / (2 tau), 1 nat a token here, and forms that were right "
        "stay so more often.",
        source=AZAR_2023,
        refuted_if="IPO's margin passes its target by half, or DPO's grows no further than IPO's",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=SEPARATE,
    arms=(
        Arm(id="dpo", label="DPO, beta 0.5"),
        Arm(id="ipo", label="IPO, tau 0.5"),
    ),
    metrics=(TRAINED, GROWTH, RIGHT, RANKED, CHOSEN, BOTH_FELL),
    claims=(
        at_most(TRAINED, "ipo", 1.5 * TARGET),
        at_most(GROWTH, "ipo", 0.25),
        superior(GROWTH, "ipo"),
        superior(RIGHT, "ipo", by=0.0),
    ),
    budgets=BUDGETS,
    predicted=predicted("trained_margin", "right"),
    setup=half_learned,
    means={
        "confirmed": "Certain labels drive DPO's margin on and on; IPO reaches its target and "
        "stops, and more of what the tutor knew survives.",
    },
)
