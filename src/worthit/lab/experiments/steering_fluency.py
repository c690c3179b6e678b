"""Sentiment in SmolLM2: how strong a push is, what it moves, and what it costs in fluency.

The direction is the difference of means of praise and blame of the same things, after layer 15. It
is judged on beginnings that go either way: which words it makes likelier, and how surprising the
plain model finds what is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worthit.decode.generate import generate
from worthit.decode.tokenizer import Tokenizer, load_tokenizer
from worthit.interp.directions import difference_in_means, random_like
from worthit.interp.hooks import intervene
from worthit.interp.run import continuation_perplexity
from worthit.interp.steering import add
from worthit.interp.texts import encode_all, states
from worthit.lab.claims import Metric, at_most, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Budget, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments._smollm2 import MODEL
from worthit.lab.predict import unseen
from worthit.lab.tasks import contrasts
from worthit.nn.decoder import Decoder
from worthit.nn.load import load_model
from worthit.techniques.interpretability.activation_addition import RIMSKY_2023

SHIFT = Metric(
    id="shift", name="logit of praise above blame", unit="nats", better="higher", margin=0.3
)
SURPRISE = Metric(id="surprise", name="surprise of the plain model", unit="nats", margin=0.2)
POINT = "layers.15.resid_post"
GOOD = (" good", " great", " wonderful", " beautiful", " happy", " excellent")
BAD = (" bad", " terrible", " awful", " ugly", " sad", " horrible")


@dataclass(frozen=True)
class Subject:
    """The model, and the states of praise and of blame, pair by pair."""

    model: Decoder
    tokenizer: Tokenizer
    praise: Tensor
    blame: Tensor


def prepared(context: Context) -> Subject:
    """SmolLM2 in fp32, and the mean state of each text after its first token."""
    model = load_model(MODEL, dtype="fp32", packed=False).eval()
    model.requires_grad_(requires_grad=False)
    tokenizer = load_tokenizer(MODEL)
    sides = [
        states(model, encode_all(tokenizer, texts), [POINT], position="mean")[POINT]
        for texts in zip(*contrasts.sentiment(), strict=True)
    ]
    return Subject(model, tokenizer, *sides)


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Each seed fits its direction to another half of the pairs."""
    s: Subject = context.shared
    n = len(s.praise)
    some = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: n // 2]
    v = difference_in_means(s.praise[some], s.blame[some])
    if arm.options.get("is_random"):
        v = random_like(v, seed)
    words = [
        [s.tokenizer.encode(word, has_special=False)[0] for word in kind] for kind in (GOOD, BAD)
    ]
    prompts = encode_all(s.tokenizer, contrasts.NEUTRAL[: context.budget.sizes["prompts"]])
    shifts, nats = [], []
    for ids in prompts:
        with intervene(s.model, {POINT: add(v, arm.options["strength"])}):
            with torch.inference_mode():
                logits = s.model(torch.tensor([ids]), last_only=True)[0, -1]
            said = generate(s.model, ids, max_tokens=context.budget.sizes["tokens"])[0].ids
        shifts.append(float(logits[words[0]].mean() - logits[words[1]].mean()))
        nats.append(math.log(continuation_perplexity(s.model, ids, said)))
    return {"shift": sum(shifts) / len(shifts), "surprise": sum(nats) / len(nats)}


QUICK = Budget(n_seeds=3, sizes={"prompts": 4, "tokens": 12}, seconds=8.0, setup_seconds=40.0)
EXPERIMENT = Experiment(
    id="steering-fluency",
    technique="activation-addition",
    question="How much sentiment does a push buy in SmolLM2, and at what cost in fluency?",
    expectation=Expectation(
        statement="Adding a contrastive direction moves behaviour with its strength, at little "
        "cost to general ability at moderate strengths.",
        source=RIMSKY_2023,
        refuted_if="a push of twice the difference moves the logits by less than half a nat more "
        "than a random one, or makes the text more surprising by half a nat a token",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",), because="one model; the control is as long as the push at 2"
    ),
    arms=(
        Arm(id="0", label="as it is", options={"strength": 0.0}),
        Arm(id="1", label="1 x", options={"strength": 1.0}),
        Arm(id="2", label="2 x", options={"strength": 2.0}),
        Arm(id="6", label="6 x", options={"strength": 6.0}),
        Arm(id="random", label="random, 2 x", options={"strength": 2.0, "is_random": True}),
    ),
    metrics=(SHIFT, SURPRISE),
    claims=(
        superior(SHIFT, "2", by=0.5),
        superior(SHIFT, "2", by=0.5, against="random"),
        superior(SHIFT, "6", against="2"),
        at_most(SURPRISE, "2", 2.0),
    ),
    budgets={
        "smoke": replace(QUICK, n_seeds=2, sizes={"prompts": 1, "tokens": 2}, seconds=2.0),
        "quick": QUICK,
        "full": replace(QUICK, n_seeds=8, sizes={"prompts": 6, "tokens": 30}, seconds=40.0),
    },
    predicted=lambda setting: unseen(setting, "shift", "surprise"),
    setup=prepared,
    means={
        "confirmed": "A push of twice the difference moves the choice of words and keeps the "
        "text as plausible: a dial for mood, at this strength.",
        "refuted": "Sentiment moves with the strength or fluency goes with it: at 135M "
        "parameters the range in which only the first happens is narrow or empty.",
    },
)
