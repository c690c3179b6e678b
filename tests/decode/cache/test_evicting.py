"""Bounded caches: rules against slow forms from their papers, on scores that are written down."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.recurrent_checks import D_MODEL
from torch import Tensor

from worthit.decode.cache.evicting import EvictingKV
from worthit.decode.cache.make import CacheConfig, new_cache
from worthit.decode.cache.policies import (
    POLICIES,
    HeavyHitters,
    Policy,
    SnapKV,
    Streaming,
    Tova,
    policy_of,
)
from worthit.decode.cache.quantized import FORMATS, QuantizedKV
from worthit.errors import InputError, UnknownName
from worthit.nn.decoder import Decoder, build
from worthit.nn.tokens import Tokens
from worthit.spec.model import Attention, FeedForward, Layer, ModelSpec, Position

HEADS, KV_HEADS, DIM, SCALE = 4, 2, 8, 0.7
SMALL = {
    "streaming": Streaming(n_sinks=2),
    "h2o": HeavyHitters(n_sinks=2),
    "snapkv": SnapKV(n_sinks=2, window=4, kernel=3),
    "tova": Tova(n_sinks=2),
}


def described(n: int, past: int) -> Tokens:
    return Tokens(n=n, past=past, positions=torch.arange(past, past + n)[None])


class Slow:
    """The same rule, one head at a time, in lists: places, and all weights of every query."""

    def __init__(self, policy: Policy, budget: int) -> None:
        self.policy, self.budget, self.n_seen = policy, budget, 0
        self.kept: list[list[int]] = [[] for _ in range(KV_HEADS)]
        self.votes: list[dict[int, float]] = [{} for _ in range(KV_HEADS)]
        self.k = torch.empty(KV_HEADS, 0, DIM)

    def step(self, q: Tensor, k: Tensor) -> None:
        n = k.shape[1]
        self.k = torch.cat([self.k, k], dim=1)
        for h in range(KV_HEADS):
            self.kept[h] += range(self.n_seen, self.n_seen + n)
            self.votes[h].update((t, 0.0) for t in range(self.n_seen, self.n_seen + n))
        self.n_seen += n
        group = HEADS // KV_HEADS
        # weights[head][query][token]
        weights = []
        for head in range(HEADS):
            tokens, rows = self.kept[head // group], []
            for i in range(n):
                seen = [t for t in tokens if t <= self.n_seen - n + i]
                scores = torch.stack([q[head, i] @ self.k[head // group, t] for t in seen]) * SCALE
                rows.append(dict(zip(seen, scores.softmax(0).tolist(), strict=True)))
            weights.append(rows)
        for h in range(KV_HEADS):
            own = weights[h * group : (h + 1) * group]
            p, votes = self.policy, self.votes[h]
            if isinstance(p, HeavyHitters):
                for rows in own:
                    for row in rows:
                        for t, w in row.items():
                            votes[t] += w
            elif isinstance(p, Tova):
                for t in self.kept[h]:
                    # All heads of the layer share; tokens that another head lacks do not occur.
                    votes[t] = sum(rows[-1][t] for rows in weights) / HEADS
            elif isinstance(p, SnapKV) and n >= p.window:
                ordered = sorted(self.kept[h])
                read = [
                    sum(row.get(t, 0.0) for rows in own for row in rows[-p.window :]) / group
                    for t in ordered
                ]
                for i, t in enumerate(ordered):
                    near = range(max(0, i - p.kernel // 2), min(len(read), i + p.kernel // 2 + 1))
                    votes[t] = sum(read[j] for j in near) / p.kernel
            elif isinstance(p, SnapKV):
                for t in range(self.n_seen - n, self.n_seen):
                    votes[t] = p.window + 1.0 + t
            self.drop(h)

    def drop(self, h: int) -> None:
        p, votes = self.policy, self.votes[h]
        n_recent = 0
        if isinstance(p, HeavyHitters):
            n_recent = int(self.budget * p.recent_share)
        elif isinstance(p, SnapKV):
            n_recent = p.window
        while len(self.kept[h]) > self.budget:
            free = [t for t in self.kept[h] if p.n_sinks <= t < self.n_seen - n_recent]
            if isinstance(p, Streaming):
                self.kept[h].remove(min(free))
            else:
                self.kept[h].remove(min(free, key=votes.__getitem__))


@pytest.mark.parametrize("chunks", [[20, *[1] * 15], [9, 9, 9, 1, 1], [3, *[1] * 20]], ids=str)
@pytest.mark.parametrize("name", POLICIES)
def test_each_rule_keeps_what_its_slow_form_keeps(name: str, chunks: list[int]) -> None:
    torch.manual_seed(0)
    cache, slow = EvictingKV(SMALL[name], 10), Slow(SMALL[name], 10)
    whole, differ = torch.empty(KV_HEADS, 0, DIM), False
    for n in chunks:
        q, k, v = (torch.randn(1, h, n, DIM) for h in (HEADS, KV_HEADS, KV_HEADS))
        past = cache.n_seen
        keys, _ = cache.append(k, v)
        whole = torch.cat([whole, k[0]], dim=1)
        # What the pass reads is what was kept before, and itself.
        places = cache.places.value[0, ..., 0]
        torch.testing.assert_close(
            keys[0], torch.stack([whole[h, places[h]] for h in range(KV_HEADS)])
        )
        cache.observe(q, SCALE, described(n, past))
        slow.step(q[0], k[0])
        kept = cache.places.value[0, ..., 0].sort(dim=-1).values.tolist()
        assert kept == [sorted(own) for own in slow.kept]
        assert cache.length == min(10, cache.n_seen)
        differ |= kept[0] != kept[1]
    # Heads choose by themselves where the rule looks at them, and a prompt was voted on.
    assert differ == (name == "h2o" or (name == "snapkv" and chunks[0] > 3))


@pytest.mark.parametrize("name", POLICIES)
def test_a_held_pass_can_be_taken_back(name: str) -> None:
    torch.manual_seed(0)
    plain, held = EvictingKV(SMALL[name], 10), EvictingKV(SMALL[name], 10)
    for n, extra in [(12, 0), (1, 2), (2, 1), (1, 3), (1, 0)]:
        q, k, v = (torch.randn(1, h, n + extra, DIM) for h in (HEADS, KV_HEADS, KV_HEADS))
        past = plain.n_seen
        plain.append(k[:, :, :n], v[:, :, :n])
        plain.observe(q[:, :, :n], SCALE, described(n, past))
        held.holds = True
        held.append(k, v)
        held.observe(q, SCALE, described(n + extra, past))
        held.take_back(extra)
        held.settle()
        for a, b in zip(plain._rows, held._rows, strict=True):
            torch.testing.assert_close(a.value, b.value)
    with pytest.raises(InputError, match="takes back only what it was told to hold"):
        plain.take_back(1)


# In a model


def small_model(**changed: object) -> Decoder:
    torch.manual_seed(0)
    attention = Attention(n_heads=4, n_kv_heads=2, head_dim=64, rotary_dim=64)
    spec = ModelSpec(
        name="m",
        d_model=D_MODEL,
        vocab_size=40,
        context_len=512,
        layers=(Layer(mixers=(replace(attention, **changed),), ffn=FeedForward(d_ff=48)),) * 2,
        position=Position(kind="rope"),
    )
    model = build(spec).eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.25)
    return model


def run(model: Decoder, ids: Tensor, chunks: list[int], config: CacheConfig) -> Tensor:
    cache, out = new_cache(model, config), []
    with torch.no_grad():
        for part in ids.split(chunks, dim=1):
            out.append(model(part, cache=cache))
    return torch.cat(out, dim=1)


@pytest.mark.parametrize("name", POLICIES)
def test_a_budget_that_holds_everything_changes_no_bit(name: str) -> None:
    model, ids = small_model(), torch.randint(40, (1, 60))
    chunks = [40, 7, *[1] * 13]
    full = run(model, ids, chunks, CacheConfig())
    bounded = run(model, ids, chunks, CacheConfig(policy=name, budget=60))
    assert torch.equal(full, bounded)
    less = run(model, ids, chunks, CacheConfig(policy=name, budget=50))
    assert torch.equal(less[:, :47], full[:, :47])
    assert not torch.allclose(less[:, 55:], full[:, 55:], atol=1e-3)


@pytest.mark.parametrize("n_sinks", [0, 3])
def test_what_is_kept_is_read_as_if_the_rest_were_masked(n_sinks: int) -> None:
    """Streaming against one pass under its mask: positions are the original ones."""
    model, ids = small_model(), torch.randint(40, (1, 40))
    policy = Streaming(n_sinks=n_sinks)
    got = run(model, ids, [1] * 40, CacheConfig(policy=policy, budget=12))
    # A query sees the sinks, and the last of a budget that it is part of after its pass: before
    # it, the budget was full without it.
    mask = torch.zeros(40, 40, dtype=torch.bool)
    for i in range(40):
        for j in range(i + 1):
            mask[i, j] = j < n_sinks or i - j <= 12 - n_sinks
    want = masked(model, ids, mask)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def masked(model: Decoder, ids: Tensor, mask: Tensor) -> Tensor:
    """One pass in which every layer reads under `mask` `(n, n)`."""
    from worthit.nn.attention import gqa

    def under(tokens: Tokens, n_keys: int, device: object, **_: object) -> Tensor:
        return mask[None, None]

    plain, gqa.causal_mask = gqa.causal_mask, under
    attend = gqa.attend
    gqa.attend = lambda *args, is_causal, **options: attend(*args, **options)
    try:
        with torch.no_grad():
            return model(ids)
    finally:
        gqa.causal_mask, gqa.attend = plain, attend


@pytest.mark.parametrize("form", [None, "int8", "int4"])
@pytest.mark.parametrize("name", POLICIES)
def test_bytes_never_exceed_the_budget(name: str, form: str | None) -> None:
    model, ids = small_model(), torch.randint(40, (1, 90))
    config = CacheConfig(policy=name, budget=50, format=form)
    cache = new_cache(model, config)
    bits = 32 if form is None else FORMATS[form].bits_per_element
    seen = 0
    with torch.no_grad():
        for part in ids.split([30, *[1] * 30, 30], dim=1):
            model(part, cache=cache)
            seen += part.shape[1]
            assert cache.nbytes == 2 * min(50, seen) * 2 * 2 * 64 * bits / 8
    assert cache.length == 90


def test_stored_in_few_bits_the_same_tokens_stay_with_little_less() -> None:
    model, ids = small_model(), torch.randint(40, (1, 100))
    chunks = [60, *[1] * 40]
    whole = run(model, ids, chunks, CacheConfig(policy="h2o", budget=40)).log_softmax(-1)
    bits = run(model, ids, chunks, CacheConfig(policy="h2o", budget=40, format="int8"))
    kl = (whole.exp() * (whole - bits.log_softmax(-1))).sum(-1)
    assert kl.mean() < 1e-3


def test_what_does_not_go_together_is_refused_with_its_reason() -> None:
    model = small_model()
    for config, message in [
        ({"policy": "h2o", "budget": 40, "format": "kivi-int4"}, "share scales"),
        ({"policy": "h2o", "budget": 5}, "at least 10 tokens for HeavyHitters, got 5"),
        ({"policy": "h2o"}, "policy and budget go together"),
        ({"budget": 40}, "policy and budget go together"),
    ]:
        with pytest.raises(InputError, match=message):
            new_cache(model, CacheConfig(**config))
    with pytest.raises(UnknownName, match="snapkv"):
        policy_of("snap")
    for changed, config, message in [
        ({"head_dim": 24, "rotary_dim": 24}, {"format": "int8"}, "must divide head_dim"),
        ({"has_sinks": True}, {"policy": "tova", "budget": 40}, "plain softmax attention"),
        ({"window": 8}, {"format": "int8"}, "nothing to quantize or drop"),
    ]:
        with pytest.raises(InputError, match=message):
            new_cache(small_model(**changed), CacheConfig(**config))
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    cache = new_cache(model, CacheConfig(policy="tova", budget=40))
    with pytest.raises(InputError, match="rows of equal length"):
        model(torch.ones(2, 3, dtype=torch.long), cache=cache, attention_mask=mask)
    assert isinstance(CacheConfig(format="int8").make(), QuantizedKV)
