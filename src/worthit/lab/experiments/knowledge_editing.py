"""Another capital for a country, in SmolLM2: a rank-one edit beside fine-tuning the same matrix.

Each seed is another fact. Does the edit hold in other words, and do other countries keep their
capitals?
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worthit.decode.corpus import sequences
from worthit.decode.tokenizer import Tokenizer, load_tokenizer
from worthit.interp.edit import (
    Fact,
    find_edit,
    finetune_edit,
    memory,
    score_edit,
    second_moment,
)
from worthit.lab.claims import Metric, at_least, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Budget, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments._smollm2 import MODEL
from worthit.lab.predict import unseen
from worthit.nn.decoder import Decoder
from worthit.nn.load import load_model
from worthit.techniques.interpretability.knowledge_editing import MENG_2022

SAYS = Metric(id="efficacy", name="edits that take", better="higher", margin=0.1)
GENERAL = Metric(id="general", name="paraphrases that follow", better="higher", margin=0.1)
SPECIFIC = Metric(id="specific", name="other countries that stay", better="higher", margin=0.1)
LAYER = 4
CAPITALS = {
    "France": "Paris",
    "Spain": "Madrid",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "Russia": "Moscow",
    "Egypt": "Cairo",
    "England": "London",
    "Greece": "Athens",
    "Austria": "Vienna",
}
PARAPHRASES = (
    "The capital city of {} is",
    "The government of {} sits in the city of",
    "{}'s capital is",
)


@dataclass(frozen=True)
class Subject:
    """The model, its tokenizer, and the keys of its text."""

    model: Decoder
    tokenizer: Tokenizer
    moment: Tensor


def prepared(context: Context) -> Subject:
    """SmolLM2 with plain weights, and the second moment of one layer's keys."""
    model = load_model(MODEL, dtype="fp32", packed=False).eval()
    model.requires_grad_(requires_grad=False)
    tokenizer = load_tokenizer(MODEL)
    rows = sequences(tokenizer, context.budget.sizes["rows"], 128, part="calibration").tolist()
    return Subject(model, tokenizer, second_moment(model, LAYER, rows))


def fact(seed: int) -> Fact:
    """The capital of one country is to be that of the next."""
    countries = list(CAPITALS)
    one = countries[seed % len(countries)]
    other = countries[(seed + 1) % len(countries)]
    rest = [c for c in countries if c not in (one, other)][:5]
    return Fact(
        prompt="The capital of {} is",
        subject=one,
        target=f" {CAPITALS[other]}",
        truth=f" {CAPITALS[one]}",
        paraphrases=PARAPHRASES,
        neighbours=tuple((f"The capital of {c} is", f" {CAPITALS[c]}") for c in rest),
    )


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """One fact, edited and scored; the model is as it was afterwards."""
    s: Subject = context.shared
    wanted = fact(seed)
    weight = memory(s.model, LAYER).weight
    before = weight.data
    try:
        if arm.id == "rome":
            edit = find_edit(
                s.model,
                s.tokenizer,
                wanted,
                s.moment,
                layer=LAYER,
                prefixes=("", "I think that "),
                n_steps=context.budget.sizes["steps"],
            )
            weight.data = before + torch.outer(edit.value, edit.key).to(before)
        elif arm.id == "finetuned":
            weight.data = before + finetune_edit(s.model, s.tokenizer, wanted, layer=LAYER)
        scores = score_edit(s.model, s.tokenizer, wanted)
    finally:
        weight.data = before
    assert scores.generalisation is not None
    assert scores.specificity is not None
    return {
        "efficacy": scores.efficacy,
        "says": scores.says,
        "general": scores.generalisation,
        "specific": scores.specificity,
    }


QUICK = Budget(n_seeds=5, sizes={"rows": 48, "steps": 20}, seconds=20.0, setup_seconds=60.0)
EXPERIMENT = Experiment(
    id="knowledge-editing",
    technique="knowledge-editing",
    question="Does a rank-one edit change one capital, in other words too, and no other capital?",
    expectation=Expectation(
        statement="ROME generalises and stays specific at once; fine-tuning the same weights "
        "sacrifices one or the other.",
        source=MENG_2022,
        refuted_if="edits do not take, do not hold in other words, or other countries keep their "
        "capitals no better than after fine-tuning",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",), because="one matrix of one model, changed until the target is said"
    ),
    arms=(
        Arm(id="finetuned", label="fine-tuned matrix"),
        Arm(id="none", label="as it is"),
        Arm(id="rome", label="rank-one edit"),
    ),
    metrics=(SAYS, GENERAL, SPECIFIC),
    claims=(
        at_least(SAYS, "rome", 0.8),
        at_least(GENERAL, "rome", 0.6),
        superior(SPECIFIC, "rome", by=0.0),
    ),
    budgets={
        "smoke": replace(QUICK, n_seeds=2, sizes={"rows": 16, "steps": 2}, seconds=8.0),
        "quick": QUICK,
        "full": replace(QUICK, n_seeds=10, sizes={"rows": 200, "steps": 30}, seconds=40.0),
    },
    predicted=lambda setting: unseen(setting, "efficacy", "general", "specific"),
    setup=prepared,
    means={
        "confirmed": "The edit takes, holds in other words and leaves other countries alone, "
        "where fine-tuning the same matrix does not.",
        "refuted": "One of the three fails at 135M parameters: the edit does not take, does "
        "not hold in other words, or fine-tuning the same matrix spills no more. "
        "For one fact, put it into the prompt.",
    },
)
