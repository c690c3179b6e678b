"""Stored in few bits, or bounded: an engine says what the same cache says in a plain loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from decode.cache.test_evicting import small_model
from decode.engine.test_service import Oracle

from worthit.decode.cache import paged
from worthit.decode.cache.make import CacheConfig, new_cache
from worthit.decode.engine import Engine, EngineConfig, Request
from worthit.errors import InputError
from worthit.nn.decoder import Decoder

CACHES = {
    "int8": CacheConfig(format="int8"),
    "int4": CacheConfig(format="int4"),
    "kivi": CacheConfig(format="kivi-int4"),
    "h2o": CacheConfig(policy="h2o", budget=50),
    "snapkv": CacheConfig(policy="snapkv", budget=50),
    "tova": CacheConfig(policy="tova", budget=50),
    "streaming": CacheConfig(policy="streaming", budget=50),
    "h2o in int8": CacheConfig(policy="h2o", budget=50, format="int8"),
}
PAGED = ("int8", "int4")


def alone(model: Decoder, ids: list[int], n: int, config: CacheConfig) -> list[int]:
    """Greedy, one sequence, the whole prompt at once."""
    cache, said = new_cache(model, config), []
    with torch.no_grad():
        logits = model(torch.tensor([ids]), cache=cache)
        for _ in range(n):
            said.append(int(logits[0, -1].argmax()))
            logits = model(torch.tensor([said[-1:]]), cache=cache)
    return said


def asked(n: int) -> list[list[int]]:
    torch.manual_seed(5)
    return [torch.randint(40, (int(torch.randint(60, 150, ())),)).tolist() for _ in range(n)]


@pytest.mark.parametrize("gathered", [0, 2048], ids=["one by one", "gathered"])
@pytest.mark.parametrize("name", CACHES)
def test_tokens_are_those_of_a_plain_loop(
    name: str, gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "GATHERED_TOKENS", gathered)
    model, prompts = small_model(), asked(4)
    want = [alone(model, p, 30, CACHES[name]) for p in prompts]
    plain = [alone(model, p, 30, CacheConfig()) for p in prompts]
    config = EngineConfig(
        max_batch_tokens=512, max_sequences=3, block_tokens=16, cache=CACHES[name], n_blocks=40
    )
    engine = Engine(model, config=config)
    got = engine.generate([Request(prompt=p, max_tokens=30) for p in prompts])
    assert [one.ids for one in got] == want
    assert want != plain or name == "int8"  # control: what is stored matters
    assert engine.memory.n_held == 0
    if name in PAGED:
        # Read as stored from the first moment on, numbers depend on no chunks either.
        small = replace(config, max_batch_tokens=16)
        chunked = Engine(model, config=small)
        got = chunked.generate([Request(prompt=p, max_tokens=30) for p in prompts])
        assert [one.ids for one in got] == want
        again = engine.generate([Request(prompt=prompts[0], max_tokens=5)])[0]
        assert again.samples[0].usage.n_cached == (len(prompts[0]) - 1) // 16 * 16
    else:
        assert not engine.memory.can_share


@pytest.mark.parametrize("name", ["int8", "kivi"])
def test_drafts_do_not_change_what_is_stored(name: str) -> None:
    model, prompts = small_model(), asked(3)
    want = [alone(model, p, 40, CACHES[name]) for p in prompts]
    oracle = Oracle([p + w for p, w in zip(prompts, want, strict=True)])
    config = EngineConfig(
        max_batch_tokens=512, max_sequences=3, cache=CACHES[name], has_draft_control=False
    )
    engine = Engine(model, config=config, drafter=oracle)
    got = engine.generate([Request(prompt=p, max_tokens=40) for p in prompts])
    assert [one.ids for one in got] == want
    assert 0 < engine.stats.n_accepted_tokens < engine.stats.n_draft_tokens


def test_a_bounded_cache_serves_what_is_longer_than_the_memory() -> None:
    model = small_model()
    cache = CacheConfig(policy="streaming", budget=32)
    config = EngineConfig(
        max_batch_tokens=32, max_sequences=2, block_tokens=16, cache=cache, n_blocks=8
    )
    engine = Engine(model, config=config)
    got = engine.generate([Request(prompt=[i] * 100, max_tokens=60) for i in range(3)])
    assert [len(one.ids) for one in got] == [60] * 3
    plain = EngineConfig(max_batch_tokens=32, max_sequences=2, block_tokens=16, n_blocks=8)
    with pytest.raises(InputError, match="holds 128 tokens"):
        Engine(model, config=plain).add(Request(prompt=[1] * 100, max_tokens=60))


@pytest.mark.parametrize("name", ["kivi", "h2o"])
def test_samples_of_one_prompt_go_their_own_ways(name: str) -> None:
    from worthit.decode.sampling import Sampling

    model, prompt = small_model(), asked(1)[0]
    config = EngineConfig(max_batch_tokens=512, max_sequences=3, cache=CACHES[name])
    request = Request(prompt=prompt, max_tokens=20, n=3, sampling=Sampling(temperature=1.0), seed=1)
    samples = Engine(model, config=config).generate([request])[0].samples
    assert len({tuple(s.ids) for s in samples}) == 3
    one = Request(prompt=prompt, max_tokens=20, sampling=Sampling(temperature=1.0), seed=1)
    assert Engine(model, config=config).generate([one])[0].ids == samples[0].ids
