"""One expert a token, with and without the loss that balances them: who is busy, who is dropped."""

from __future__ import annotations

from worthit.lab.claims import Metric, at_most, no_worse, superior
from worthit.lab.experiment import (
    Arm,
    Budget,
    Expectation,
    Experiment,
    Matched,
    Measures,
    Training,
    Trial,
)
from worthit.lab.experiments._mixtures import (
    BUDGETS,
    IMBALANCE,
    balanced,
    imbalance,
    mixture,
    routed,
    unseen,
)
from worthit.lab.experiments._text import LOSS, RECIPE, text
from worthit.spec.model import ModelSpec
from worthit.techniques.moe._experts import FEDUS_2021

CAPACITY = 1.25
DROPPED = Metric(id="dropped", name="share of tokens that are dropped", margin=0.02)


def switch(budget: Budget) -> ModelSpec:
    """One of eight experts a token, each with room for a quarter more than its share."""
    return mixture(
        budget,
        width=2.0,
        n_experts_per_token=1,
        has_normalised_weights=False,
        capacity_factor=CAPACITY,
        balance="none",
    )


def balance(trial: Trial) -> Measures:
    """Imbalance, and the share of test tokens that find their expert full."""
    seq_len, n_dropped, n_tokens = trial.data.seq_len, 0.0, 0
    for router in routed(trial):
        for routing in router:
            n_experts = routing.logits.shape[-1]
            chosen = routing.chosen.view(-1, seq_len)
            counts = (chosen[..., None] == chosen.new_tensor(range(n_experts))).sum(dim=1)
            room = -(-seq_len * CAPACITY // n_experts)
            n_dropped += float((counts - room).clamp_min(0).sum())
            n_tokens += chosen.numel()
    return {**imbalance(trial), "dropped": n_dropped / n_tokens}


EXPERIMENT = Experiment(
    id="switch",
    technique="switch",
    question="Does the auxiliary loss keep the experts of a Switch layer busy alike, at no cost in "
    "loss?",
    expectation=Expectation(
        statement="A weight of 0.01 balances the experts quickly and does not overwhelm the loss "
        "that counts; without it tokens crowd and are dropped.",
        source=FEDUS_2021,
        refuted_if="the balance loss does not lower the imbalance, or costs 0.05 nats",
        worth_it=True,
    ),
    how=Training(data=text, recipe=RECIPE, score=balance),
    matched=Matched(what=("parameters", "FLOPs", "tokens"), because="the arms differ in the loss"),
    arms=(
        Arm(id="without", label="without the loss", model=switch),
        Arm(id="balanced", label="with the loss", model=switch, loss=balanced),
    ),
    metrics=(IMBALANCE, DROPPED, LOSS),
    claims=(
        superior(IMBALANCE, "balanced", by=0.2),
        at_most(DROPPED, "balanced", 0.15),
        no_worse(LOSS, "balanced"),
    ),
    budgets=BUDGETS,
    predicted=unseen,
    means={
        "confirmed": "The balance loss does what it is for, and what it is for is worth having: "
        "tokens that would be dropped are not.",
        "refuted": "Read the three claims apart: balance, drops and loss need not go together in "
        "so short a training.",
    },
)
