"""Half of the cache thrown away, by four rules: what the text loses, and what cannot be found.

SmolLM2-135M-Instruct reads in pieces of 32 tokens and keeps 256 in every layer. The loss is that
of tokens which have more before them than is kept. A number stands a quarter into a text of twice
that length, and is asked for at its end: rules that do not look at what attention reads have
dropped it by then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from worthit.decode.cache.make import CacheConfig, new_cache
from worthit.decode.cache.policies import Streaming
from worthit.decode.longcontext import Haystack, Needle
from worthit.lab.claims import Metric, at_least, at_most, no_worse, ratio_between, worse
from worthit.lab.context import Context, Setting
from worthit.lab.experiment import (
    Arm,
    Budget,
    Custom,
    Expectation,
    Experiment,
    Matched,
    Measures,
    Prediction,
)
from worthit.lab.experiments._smollm2 import LOSS, Loaded, foretold, load, read, row, served
from worthit.lab.metrics import CACHE_BYTES
from worthit.lab.predict import unseen
from worthit.nn import Decoder
from worthit.techniques import technique
from worthit.techniques.cache.kv_eviction import XIAO_2023

CHUNK = 32
DEPTH = 0.25
FOUND = Metric(id="found", name="numbers found in the first half", better="higher", margin=0.1)


@dataclass(frozen=True)
class Shared(Loaded):
    """The model, and text to hide numbers in."""

    haystack: Haystack


def setup(context: Context) -> Shared:
    """The model in fp32, and the held-out text by tokens."""
    found = load()
    return Shared(found.model, found.tokenizer, Haystack(found.tokenizer))


def config(arm: Arm, budget: Budget) -> CacheConfig:
    """How the arm's cache drops; nothing in the baseline."""
    rule = arm.options.get("policy")
    return CacheConfig(policy=rule, budget=None if rule is None else budget.sizes["kept"])


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """The loss beyond what is kept, and the share of needles that are said whole."""
    shared, budget = context.shared, context.budget
    n, kept = budget.sizes["tokens"], budget.sizes["kept"]
    ids = row(shared.tokenizer, seed, n)
    rule = config(arm, budget)
    logprobs, nbytes = read(shared.model, ids, rule, CHUNK)
    losses = -logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0]
    n_needles = budget.sizes["needles"]
    found = [
        _is_found(
            shared.model,
            rule,
            shared.haystack.needle(n, DEPTH, n_keys=1, seed=seed * n_needles + i),
        )
        for i in range(n_needles)
    ]
    return {
        "loss": float(losses[kept:].mean()),
        "found": sum(found) / n_needles,
        "cache_bytes": float(nbytes),
    }


@torch.inference_mode()
def _is_found(model: Decoder, rule: CacheConfig, needle: Needle) -> bool:
    """Whether the answer is what greedy decoding says, token for token."""
    cache = new_cache(model, rule)
    for piece in torch.tensor([needle.prompt]).split(CHUNK, 1):
        logits = model(piece, cache=cache, last_only=True)
    for token in needle.answer:
        if int(logits[0, -1].argmax()) != token:
            return False
        logits = model(torch.tensor([[token]]), cache=cache, last_only=True)
    return True


def predicted(setting: Setting) -> Iterator[Prediction]:
    """Bytes that are kept."""
    sizes = setting.budget.sizes
    before = served(prompt=sizes["tokens"] - 1, output=1)
    after = technique("kv-eviction").apply(before, keep=sizes["kept"] / sizes["tokens"])
    arms = [arm.id for arm in setting.experiment.variants]
    yield from foretold("cache_bytes", "sequence_bytes", before, dict.fromkeys(arms, after))
    yield from unseen(setting, "loss", "found")


QUICK = Budget(
    n_seeds=4, sizes={"tokens": 512, "kept": 256, "needles": 2}, seconds=7.0, setup_seconds=6.0
)
EXPERIMENT = Experiment(
    id="kv-eviction",
    technique="kv-eviction",
    question="Which half of the cache can go, and what is then lost?",
    expectation=Expectation(
        statement="Without the first tokens the text falls apart; with them and a recent window "
        "the loss is nearly that of the whole cache, but what stood in between cannot be found "
        "again.",
        source=XIAO_2023,
        refuted_if="a recent window alone is as good as one with sinks, sinks and a window lose a "
        "tenth of a nat, or still find numbers that were dropped",
        worth_it=None,
    ),
    how=Custom(run=run),
    matched=Matched(what=("nothing",), because="the same weights and text, as many tokens kept"),
    arms=(
        Arm(id="full", label="everything kept"),
        Arm(id="recent", label="recent only", options={"policy": Streaming(n_sinks=0)}),
        Arm(id="streaming", label="4 sinks and recent", options={"policy": "streaming"}),
        Arm(id="h2o", label="most read (H2O)", options={"policy": "h2o"}),
        Arm(id="tova", label="least read goes (TOVA)", options={"policy": "tova"}),
    ),
    metrics=(LOSS, FOUND, CACHE_BYTES),
    claims=(
        worse(LOSS, "recent", by=0.3),
        no_worse(LOSS, "streaming", margin=0.1),
        at_most(FOUND, "streaming", 0.2),
        at_least(FOUND, "full", 0.5),
        ratio_between(CACHE_BYTES, "streaming", 0.0, 0.6),
    ),
    budgets={
        "smoke": Budget(
            n_seeds=2,
            sizes={"tokens": 384, "kept": 192, "needles": 1},
            seconds=3.0,
            setup_seconds=6.0,
        ),
        "quick": QUICK,
        "full": Budget(
            n_seeds=10,
            sizes={"tokens": 2048, "kept": 1024, "needles": 4},
            seconds=60.0,
            setup_seconds=6.0,
        ),
    },
    predicted=predicted,
    setup=setup,
    means={
        "confirmed": "Half of the cache can go without hurting the text that follows, as long as "
        "the first tokens stay; whoever asks about what came before must not evict it.",
    },
)
