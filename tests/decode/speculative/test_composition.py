"""Drafts by cache by paging by company: every cell is exact, or refused with its reason.

The matrix of docs/composition.md on a model without training: greedy tokens with drafts equal those
without, on the same cache. `benchmarks/inference/bench_composition.py` measures the same cells.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from decode.cache.test_evicting import small_model
from decode.engine.test_caches import asked
from decode.speculative.drafters import Bush, Oracle, Random

from worthit.decode.cache.make import CacheConfig
from worthit.decode.engine import Engine, EngineConfig, Request
from worthit.decode.speculative.draft_model import DraftModel
from worthit.decode.speculative.drafter import Drafter
from worthit.decode.speculative.lookahead import Lookahead
from worthit.decode.speculative.lookup import PromptLookup
from worthit.decode.speculative.shallow import until
from worthit.errors import InputError
from worthit.nn.decoder import Decoder

N = 24
BUDGET = 96
CACHES = {
    "plain": CacheConfig(),
    "int8": CacheConfig(format="int8"),
    "int4": CacheConfig(format="int4"),
    "kivi-int4": CacheConfig(format="kivi-int4"),
    "streaming": CacheConfig(policy="streaming", budget=BUDGET),
    "h2o": CacheConfig(policy="h2o", budget=BUDGET),
    "snapkv": CacheConfig(policy="snapkv", budget=BUDGET),
    "tova": CacheConfig(policy="tova", budget=BUDGET),
    "tova + int8": CacheConfig(policy="tova", budget=BUDGET, format="int8"),
}
# Where rows are not in blocks, a tree's gaps cannot be closed.
NO_TREES = ("kivi-int4", "streaming", "h2o", "snapkv", "tova", "tova + int8")
BOUNDED = ("streaming", "h2o", "snapkv", "tova", "tova + int8")
Makes = Callable[[Decoder, list[list[int]]], Drafter]
DRAFTERS: dict[str, Makes] = {
    "random": lambda model, texts: Random(model.spec.vocab_size),
    "oracle": lambda model, texts: Oracle(texts, errs=True),
    "lookup": lambda model, texts: PromptLookup(),
    "exit": lambda model, texts: DraftModel(until(model, 1), model.spec.vocab_size),
    "lookahead": lambda model, texts: Lookahead(2, 3, 1),
    "tree": lambda model, texts: Bush(texts, model.spec.vocab_size),
}


def engine(model: Decoder, cache: str, drafter: Drafter | None, *, users: int) -> Engine:
    config = EngineConfig(
        max_batch_tokens=192,
        max_sequences=users,
        cache=CACHES[cache],
        has_draft_control=False,
        n_blocks=60,
    )
    return Engine(model, config=config, drafter=drafter)


def said(one: Engine, prompts: list[list[int]]) -> list[list[int]]:
    found = one.generate([Request(prompt=p, max_tokens=N) for p in prompts])
    assert [f.samples[0].error for f in found] == [None] * len(prompts)
    assert one.memory.n_held == 0
    return [f.ids for f in found]


@pytest.mark.parametrize("users", [1, 3], ids=["alone", "batch"])
@pytest.mark.parametrize("cache", CACHES)
def test_every_cell_is_exact_or_refused(cache: str, users: int) -> None:
    torch.manual_seed(3)
    model = small_model()
    # Some prompts stay within the budget of bounded caches for a while, others are beyond it.
    prompts = [p[: 60 + 30 * i] for i, p in enumerate(asked(3))]
    want = said(engine(model, cache, None, users=1), prompts)
    texts = [p + w for p, w in zip(prompts, want, strict=True)]
    for name, make in DRAFTERS.items():
        drafter = make(model, texts)
        if drafter.has_trees and cache in NO_TREES:
            with pytest.raises(InputError, match="take chains"):
                engine(model, cache, drafter, users=users)
            continue
        one = engine(model, cache, drafter, users=users)
        assert said(one, prompts) == want, name
        if name == "oracle":
            assert one.stats.n_accepted_tokens > 0


@pytest.mark.parametrize("cache", BOUNDED)
def test_a_bounded_cache_takes_drafts_until_it_is_full(cache: str) -> None:
    model = small_model()
    short, long = asked(1)[0][:60], asked(2)[1][:120]
    one = engine(model, cache, Random(model.spec.vocab_size), users=1)
    got = one.generate([Request(prompt=p, max_tokens=N) for p in (short, long)])
    used = [f.samples[0].usage for f in got]
    assert used[0].n_drafted > 0
    assert used[1].n_drafted == 0
