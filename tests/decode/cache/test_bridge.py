"""What `cost` predicts of caches is what real ones hold, to the byte."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from worthit.cost.memory import Split, cache_bytes
from worthit.decode.cache.make import CacheConfig, new_cache
from worthit.decode.cache.quantized import FORMATS
from worthit.decode.engine import Engine, EngineConfig, Request
from worthit.nn.decoder import build
from worthit.spec.case import Runtime
from worthit.spec.model import (
    Attention,
    FeedForward,
    Layer,
    LinearAttention,
    ModelSpec,
    Position,
)

ATTENTION = Attention(n_heads=4, n_kv_heads=2, head_dim=64, rotary_dim=64)
LINEAR = LinearAttention(
    kind="gated-delta", n_key_heads=2, n_value_heads=2, key_dim=8, value_dim=8, d_conv=4, chunk=8
)
FFN = FeedForward(d_ff=32)


def spec_of(*mixers: object) -> ModelSpec:
    return ModelSpec(
        name="m",
        d_model=32,
        vocab_size=40,
        context_len=512,
        layers=tuple(Layer(mixers=(m,), ffn=FFN) for m in mixers),
        position=Position(kind="rope"),
    )


SPECS = {
    "attention": spec_of(ATTENTION, ATTENTION),
    "window too": spec_of(ATTENTION, replace(ATTENTION, window=40)),
    "hybrid": spec_of(ATTENTION, LINEAR),
}


def predicted(spec: ModelSpec, n: int, *, form: str = "fp32", **runtime: object) -> float:
    precision = replace(spec.precision, cache=form, state="fp32", activations="fp32")
    found = cache_bytes(
        replace(spec, precision=precision), Split(), np.float64(n), runtime=Runtime(**runtime)
    )
    return float(found.per_sequence)


@pytest.mark.parametrize("n_tokens", [1, 64, 127, 128, 129, 300])
@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.in_cost])
def test_quantized_caches(name: str, n_tokens: int) -> None:
    spec, form = SPECS["attention"], FORMATS[name]
    cache = new_cache(build(spec).eval(), CacheConfig(format=name))
    model = build(spec).eval()
    with torch.no_grad():
        model(torch.zeros(1, n_tokens, dtype=torch.long), cache=cache)
    recent = form.recent or None
    assert cache.nbytes == predicted(spec, n_tokens, form=form.in_cost, recent_tokens=recent)


@pytest.mark.parametrize("n_tokens", [20, 50, 51, 120])
@pytest.mark.parametrize("policy", ["streaming", "h2o", "snapkv", "tova"])
@pytest.mark.parametrize("name", SPECS)
def test_bounded_caches(name: str, policy: str, n_tokens: int) -> None:
    spec = SPECS[name]
    model = build(spec).eval()
    cache = new_cache(model, CacheConfig(policy=policy, budget=50))
    with torch.no_grad():
        model(torch.zeros(1, n_tokens, dtype=torch.long), cache=cache)
    assert cache.nbytes == predicted(spec, n_tokens, kept_tokens=50)


@pytest.mark.parametrize("n_tokens", [1, 15, 16, 17, 100])
def test_bytes_of_the_blocks_that_a_sequence_holds(n_tokens: int) -> None:
    spec = SPECS["attention"]
    model = build(spec).eval()
    engine = Engine(model, config=EngineConfig(n_blocks=64, max_batch_tokens=256))
    engine.add(Request(prompt=[1] * n_tokens, max_tokens=2))
    engine.step()
    per_block = engine.runner.layout.block_bytes[0]
    want = predicted(spec, n_tokens, has_paging=True, page_tokens=16)
    assert engine.stats.n_blocks_held * per_block == want
