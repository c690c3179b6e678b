"""What the experiments on drafts share: three kinds of prompts, answered with and without guesses.

SmolLM2-135M-Instruct answers in fp32, greedily, each seed one prompt of each kind. Counted is what
a machine cannot blur: tokens a pass, and whether the text is the same. Times are of the processor,
not of the wall: other work on the machine does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from worthit.decode.generate import tokens_of
from worthit.decode.speculative.control import Control
from worthit.decode.speculative.costs import costs_of_model
from worthit.decode.speculative.drafter import Drafter
from worthit.decode.speculative.loop import Tally, speculate
from worthit.decode.tokenizer import Tokenizer
from worthit.lab.claims import Metric
from worthit.lab.context import Context, Setting
from worthit.lab.experiment import Arm, Budget, Matched, Prediction
from worthit.lab.experiments import _smollm2
from worthit.lab.experiments._smollm2 import foretold, served
from worthit.lab.metrics import SECONDS
from worthit.lab.predict import unseen
from worthit.lab.tasks.prompts import prompts
from worthit.nn import Decoder
from worthit.nn.inference import optimize
from worthit.techniques import technique

KINDS = ("edit", "summarise", "chat")
TOKEN_TIME = replace(SECONDS, name="time a token", unit="s/token")
ALIKE = Metric(id="alike", name="answers the same to the token", better="higher", margin=0.01)
ACCEPTED = Metric(
    id="accepted", name="share of drafted tokens accepted", better="higher", margin=0.05
)
# What one token at a time is bound by. A draft of the model's own layers reads its share of them.
READINGS = Metric(
    id="readings", name="readings of the model's layers a token", scale="ratio", margin=0.05
)

MATCHED = Matched(
    what=("nothing",),
    because="the same prompts, weights and tokens; that the text is the same is checked",
)


def budgets(quick: Budget) -> dict[str, Budget]:
    """The budgets of an experiment whose quick one is `quick`."""
    return {
        "smoke": replace(quick, n_seeds=2, n_rounds=1, sizes={"tokens": 12}, seconds=4.0),
        "quick": quick,
        "full": replace(quick, n_rounds=7, sizes={"tokens": 96}, seconds=120.0),
    }


def per_pass(kind: str) -> Metric:
    """Tokens that a pass says, on prompts of a kind."""
    return Metric(
        id=f"{kind}_per_pass",
        name=f"tokens a pass of the model, {kind}",
        better="higher",
        scale="ratio",
        margin=0.05,
    )


def time_of(kind: str) -> Metric:
    """Processor time of a token, on prompts of a kind."""
    return Metric(
        id=f"{kind}_s",
        name=f"processor time a token, {kind}",
        unit="s/token",
        scale="ratio",
        margin=0.05,
    )


@dataclass
class Drafting:
    """The model, laid out for decoding, and its plain answers as they become known."""

    model: Decoder
    tokenizer: Tokenizer
    plain: dict[tuple[str, int], list[int]] = field(default_factory=dict)


def setup(context: Context) -> Drafting:
    """Load the model once."""
    found = _smollm2.load()
    return Drafting(optimize(found.model), found.tokenizer)


def preparing(
    make: Callable[[Drafting, Arm], tuple[Drafter | None, int]],
) -> Callable[[Context, Arm, int], Callable[[], dict[str, float]]]:
    """The `prepare` of a `Timing`, for drafters that `make` gives with their draft length."""

    def prepare(context: Context, arm: Arm, seed: int) -> Callable[[], dict[str, float]]:
        shared: Drafting = context.shared
        drafter, most = make(shared, arm)
        n_tokens = context.budget.sizes["tokens"]
        asked = {kind: prompts(kind)[seed % len(prompts(kind))] for kind in KINDS}
        ids = {k: shared.tokenizer.encode_chat(p.messages) for k, p in asked.items()}
        for kind, prompt in ids.items():
            if (kind, seed) not in shared.plain:
                shared.plain[kind, seed] = _plain(shared, prompt, n_tokens)
        is_adaptive = arm.options.get("is_adaptive", False)
        costs = costs_of_model(shared.model) if is_adaptive else None

        def once() -> dict[str, float]:
            found: dict[str, float] = {"tokens": 0.0}
            alike: list[bool] = []
            total = Tally()
            readings = 0.0
            for kind, prompt in ids.items():
                tally = Tally()
                control = None if costs is None else Control(costs, fixed=_fixed(drafter, most))
                said, seconds = _said(shared.model, prompt, drafter, n_tokens, most, control, tally)
                found[f"{kind}_s"] = seconds / (len(said) - 1)
                found[f"{kind}_per_pass"] = len(said) / tally.n_passes
                found["tokens"] += len(said)
                readings += _readings(shared.model, drafter, tally)
                total.n_drafted += tally.n_drafted
                total.n_accepted += tally.n_accepted
                alike.append(said == shared.plain[kind, seed])
            found["alike"] = sum(alike) / len(alike)
            found["readings"] = readings / found["tokens"]
            # Of none drafted none are accepted.
            found["accepted"] = total.n_accepted / max(total.n_drafted, 1)
            return found

        return once

    return prepare


def _said(
    model: Decoder,
    prompt: list[int],
    drafter: Drafter | None,
    n: int,
    most: int,
    control: Control | None,
    tally: Tally,
) -> tuple[list[int], float]:
    """Exactly `n` tokens, and the processor time of all after the first, which is the prompt's."""
    tokens: Iterator[int]
    if drafter is None:
        tally.n_passes = n
        tokens = iter(row[0] for row in tokens_of(model, [prompt], max_tokens=n))
    else:
        tokens = speculate(
            model, prompt, drafter, max_tokens=n, most=most, control=control, tally=tally
        )
    said = [next(tokens)]
    began = time.process_time()
    said += tokens
    return said, time.process_time() - began


def _plain(shared: Drafting, prompt: list[int], n: int) -> list[int]:
    return _said(shared.model, prompt, None, n, 1, None, Tally())[0]


def _fixed(drafter: Drafter | None, most: int) -> int | None:
    return most if drafter is not None and drafter.has_trees else None


def _readings(model: Decoder, drafter: Drafter | None, tally: Tally) -> float:
    """How often all layers are read: once a pass, and in part for each token that some draft."""
    draft = getattr(drafter, "model", None)
    share = 0.0 if draft is None else len(draft.layers) / len(model.layers)
    return tally.n_passes + share * tally.n_drafted


def foreseen(name: str, setting: Setting, **settings: Any) -> Iterator[Prediction]:
    """What cost says of a technique in a chat of this size, with its published acceptance."""
    n = setting.budget.sizes["tokens"]
    before = served(prompt=120, output=n, copy_rate=0.5)
    after = technique(name).apply(before, **settings)
    arms = {arm.id: after for arm in setting.experiment.variants}
    yield from foretold("seconds", "s_per_token", before, arms)
    yield from unseen(setting, *(m.id for m in setting.experiment.metrics if m.id != "seconds"))
