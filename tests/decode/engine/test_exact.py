"""Bit for bit the same logits, in any company, in any chunks, with and without what is known."""

from __future__ import annotations

import pytest
import torch
from decode.cache.test_evicting import small_model
from decode.engine.test_engine import model_of
from decode.engine.test_service import Oracle

from worthit.decode.cache.make import CacheConfig
from worthit.decode.engine import Engine, EngineConfig, Request
from worthit.errors import InputError
from worthit.nn.decoder import Decoder
from worthit.nn.inference import optimize


class Recording:
    """An engine's runner whose logits are kept, by request and place."""

    def __init__(self, engine: Engine) -> None:
        self.runner, self.seen = engine.runner, {}
        self.run_plainly = engine.runner.run
        engine.runner.run = self.run

    def run(self, parts: list) -> torch.Tensor:
        logits, at = self.run_plainly(parts), 0
        for p in parts:
            end = p.sequence.n_computed + p.n
            for i in range(p.n_rows):
                place = end - p.n_rows + i
                known = tuple([*p.sequence.ids, *p.sequence.draft.tokens][: place + 1])
                self.seen.setdefault(known, []).append(logits[at + i].clone())
            at += p.n_rows
        return logits


def logits_of(model: Decoder, prompts: list[list[int]], **options: object) -> dict:
    """Of every prefix that a choice was made after: its logits, which must all be one."""
    drafter = options.pop("drafter", None)
    again = options.pop("again", False)
    is_exact = options.pop("is_exact", True)
    config = EngineConfig(is_exact=is_exact, block_tokens=4, has_draft_control=False, **options)
    engine = Engine(model, config=config, drafter=drafter)
    recording = Recording(engine)
    for _ in range(1 + again):
        got = engine.generate([Request(prompt=p, max_tokens=10) for p in prompts])
        assert [one.samples[0].error for one in got] == [None] * len(prompts)
    if is_exact:
        for rows in recording.seen.values():
            assert all(torch.equal(row, rows[0]) for row in rows)
    return {known: rows[0] for known, rows in recording.seen.items()}


def asked() -> list[list[int]]:
    torch.manual_seed(2)
    same = torch.randint(40, (12,)).tolist()
    return [same + torch.randint(40, (n,)).tolist() for n in (1, 9, 4, 17, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["grouped", "latent", "window", "int8"])
def test_every_bit_is_that_of_the_sequence_alone(name: str, dtype: torch.dtype) -> None:
    cache = CacheConfig(format="int8") if name == "int8" else CacheConfig()
    model = (small_model() if name == "int8" else model_of(name)).to(dtype)
    if name in ("grouped", "int8"):
        model = optimize(model)
    prompts = asked()
    one = {"max_batch_tokens": 64, "max_sequences": 1, "has_prefix_caching": False}
    want: dict = {}
    for prompt in prompts:
        want.update(logits_of(model, [prompt], cache=cache, **one))
    texts = [list(known) for known in want]
    ways = {
        "together": {"max_batch_tokens": 64, "max_sequences": 5},
        "in chunks": {"max_batch_tokens": 5, "max_sequences": 5},
        "with known prefixes": {"max_batch_tokens": 64, "max_sequences": 2, "again": True},
        "with drafts": {
            "max_batch_tokens": 64,
            "max_sequences": 3,
            "drafter": Oracle(sorted(texts, key=len, reverse=True)),
        },
    }
    for way, options in ways.items():
        got = logits_of(model, prompts, cache=cache, **options)
        both = set(got) & set(want)
        assert len(both) == len(want), way
        for known in both:
            assert torch.equal(got[known], want[known]), way


def test_without_the_promise_bits_differ() -> None:
    """The control: what is tested above is not so by itself."""
    model, prompts = small_model(), asked()
    options = {"max_batch_tokens": 64, "has_prefix_caching": False, "is_exact": False}
    want: dict = {}
    for prompt in prompts:
        want.update(logits_of(model, [prompt], max_sequences=1, **options))
    got = logits_of(model, prompts, max_sequences=5, **options)
    assert not all(torch.equal(got[known], want[known]) for known in set(got) & set(want))


def test_what_cannot_be_exact_is_refused() -> None:
    for name, message in [("mamba2", "Mamba2Mixer"), ("experts", "TopKMoE"), ("recursive", "Rec")]:
        with pytest.raises(InputError, match=message):
            Engine(model_of(name), config=EngineConfig(is_exact=True))
    for cache in (CacheConfig(format="kivi-int4"), CacheConfig(policy="tova", budget=40)):
        with pytest.raises(InputError, match="depends on the step"):
            Engine(small_model(), config=EngineConfig(is_exact=True, cache=cache))
