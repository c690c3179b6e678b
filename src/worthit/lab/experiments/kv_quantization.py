"""Keys and values in 8 and 4 bits, on a published model: what is saved, and what it disturbs.

SmolLM2-135M-Instruct reads held-out text in pieces of 32 tokens, each over a cache in which all
earlier ones are stored in few bits. Four bits are tried in two layouts of nearly the same size:
every token with its own scales (its keys have channels that are always large, and share a scale
with small ones), and KIVI's, in which keys share scales by channel and the last 64 tokens stay
whole.
"""

from __future__ import annotations

from collections.abc import Iterator

from worthit.decode.cache.make import CacheConfig
from worthit.lab.claims import at_most, ratio_between, superior
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
from worthit.lab.experiments._smollm2 import (
    KL,
    LOSS,
    divergence,
    foretold,
    loaded,
    loss,
    read,
    row,
    served,
)
from worthit.lab.metrics import CACHE_BYTES
from worthit.lab.predict import unseen
from worthit.techniques import technique
from worthit.techniques.cache.kv_quantization import LIU_2024

CHUNK = 32
# Formats by arm; and the formats that stand for them where cost speaks.
FORMATS = {"int8": "int8", "int4": "int4", "kivi": "kivi-int4"}
IN_COST = {"int8": "int8-g32", "int4": "q4_1", "kivi": "int4-g64"}


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """One row of text, read over this cache and over a plain one."""
    model, tokenizer = context.shared.model, context.shared.tokenizer
    ids = row(tokenizer, seed, context.budget.sizes["tokens"])
    config = CacheConfig(format=FORMATS.get(arm.id))
    found, nbytes = read(model, ids, config, CHUNK)
    plain = found if config.is_plain else read(model, ids, CacheConfig(), CHUNK)[0]
    return {
        "kl": divergence(plain, found),
        "loss": loss(found, ids),
        "cache_bytes": float(nbytes),
    }


def predicted(setting: Setting) -> Iterator[Prediction]:
    """Bytes of a whole sequence, whose last token is just written."""
    before = served(prompt=setting.budget.sizes["tokens"] - 1, output=1)
    change = technique("kv-quantization").apply
    after = {arm: change(before, format=name) for arm, name in IN_COST.items()}
    yield from foretold("cache_bytes", "sequence_bytes", before, after)
    yield from unseen(setting, "kl", "loss")


QUICK = Budget(n_seeds=5, sizes={"tokens": 512}, seconds=4.0, setup_seconds=6.0)
EXPERIMENT = Experiment(
    id="kv-quantization",
    technique="kv-quantization",
    question="How few bits can the cache of a small published model take, and in which layout?",
    expectation=Expectation(
        statement="8 bits cannot be told from the plain cache; at 4 bits keys that share scales by "
        "channel disturb far less than tokens with scales of their own.",
        source=LIU_2024,
        refuted_if="8 bits move the distribution by more than 0.001 nats, or KIVI's layout at 4 "
        "bits is no nearer to it than the one by tokens",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(what=("nothing",), because="the same weights read the same text"),
    arms=(
        Arm(id="plain", label="32 bits"),
        Arm(id="int8", label="8 bits, by token"),
        Arm(id="int4", label="4 bits, by token"),
        Arm(id="kivi", label="4 bits, keys by channel (KIVI)"),
    ),
    metrics=(KL, LOSS, CACHE_BYTES),
    claims=(
        at_most(KL, "int8", 0.001),
        superior(KL, "kivi", against="int4"),
        at_most(KL, "kivi", 0.02),
        ratio_between(CACHE_BYTES, "int8", 0.0, 0.3),
        ratio_between(CACHE_BYTES, "int4", 0.0, 0.2),
    ),
    budgets={
        "smoke": Budget(n_seeds=2, sizes={"tokens": 256}, seconds=2.0, setup_seconds=6.0),
        "quick": QUICK,
        "full": Budget(n_seeds=10, sizes={"tokens": 2048}, seconds=30.0, setup_seconds=6.0),
    },
    predicted=predicted,
    setup=loaded,
    means={
        "confirmed": "8 bits are free in quality; 4 are nearly so where keys are grouped by "
        "channel.",
    },
)
