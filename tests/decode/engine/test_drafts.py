"""Drafts in a busy engine: the same text, whatever drafts, whoever else is there."""

from __future__ import annotations

import time

import pytest
import torch
from decode.engine.test_engine import model_of, prompts
from decode.speculative.drafters import Bush, Oracle, Random
from nn.test_ragged import VOCAB
from scipy import stats

from worthit.decode.cache.make import CacheConfig
from worthit.decode.engine import Engine, EngineConfig, Request
from worthit.decode.engine.verify_costs import costs_of
from worthit.decode.generate import generate
from worthit.decode.sampling import Sampling
from worthit.decode.speculative.control import Control, Costs
from worthit.decode.speculative.draft_model import DraftModel
from worthit.decode.speculative.drafter import Plain
from worthit.decode.speculative.lookahead import Lookahead
from worthit.decode.speculative.lookup import PromptLookup
from worthit.decode.speculative.shallow import until
from worthit.errors import InputError
from worthit.nn.decoder import Decoder

N = 14
BUSY = EngineConfig(
    max_batch_tokens=48, max_sequences=4, block_tokens=4, n_blocks=30, has_draft_control=False
)


def small_but(model: Decoder, name: str) -> Decoder:
    other = model_of(name)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return other


def drafters(name: str, model: Decoder, texts: list[list[int]]) -> dict[str, Plain]:
    found: dict[str, Plain] = {
        "random": Random(VOCAB),
        "oracle": Oracle(texts, errs=True),
        "lookup": PromptLookup(),
        "model": DraftModel(small_but(model, name), VOCAB),
        "until": DraftModel(until(model, 1), VOCAB),
    }
    if name in ("grouped", "window", "latent"):
        found |= {"bush": Bush(texts, VOCAB), "lookahead": Lookahead(3, 3, 2)}
    return found


@pytest.mark.parametrize("name", ["grouped", "window", "latent", "hybrid"])
def test_text_in_a_crowd_is_that_alone(name: str) -> None:
    model, asked = model_of(name), prompts(6)
    want = [generate(model, p, max_tokens=N)[0].ids for p in asked]
    texts = [p + w for p, w in zip(asked, want, strict=True)]
    for kind, drafter in drafters(name, model, texts).items():
        engine = Engine(model, config=BUSY, drafter=drafter)
        got = engine.generate([Request(prompt=p, max_tokens=N) for p in asked])
        assert [one.samples[0].error for one in got] == [None] * 6, kind
        assert [one.ids for one in got] == want, kind
        assert engine.memory.n_held == 0
        used = [one.samples[0].usage for one in got]
        assert sum(u.n_drafted for u in used) == engine.stats.n_draft_tokens
        assert sum(u.n_accepted for u in used) == engine.stats.n_accepted_tokens
        if kind != "lookup":
            assert engine.stats.n_draft_tokens > 0, kind
        if kind in ("oracle", "bush"):
            assert engine.stats.n_accepted_tokens > 10
            assert max(u.acceptance or 0 for u in used) > 0.3


def test_preemption_and_cancellation_under_drafts() -> None:
    model, asked = model_of("grouped"), prompts(6)
    want = [generate(model, p, max_tokens=20)[0].ids for p in asked]
    texts = [p + w for p, w in zip(asked, want, strict=True)]
    config = EngineConfig(
        max_batch_tokens=24, max_sequences=4, block_tokens=4, n_blocks=17, has_draft_control=False
    )
    for drafter in (Oracle(texts, errs=True), DraftModel(model, VOCAB), Bush(texts, VOCAB)):
        engine = Engine(model, config=config, drafter=drafter)
        names = [engine.add(Request(prompt=p, max_tokens=20)) for p in asked]
        said: dict[str, list[int]] = {name: [] for name in names}
        for step in range(10_000):
            if not engine.has_work:
                break
            if step == 4:
                engine.abort(names[1])
            for output in engine.step():
                said[output.id] += output.ids
        for i, name in enumerate(names):
            assert said[name] == want[i][: len(said[name])]
            assert len(said[name]) == 20 or i == 1
        assert engine.stats.n_preemptions > 0
        assert engine.memory.n_held == 0


def test_picked_drafts_leave_drawn_text_as_it_is() -> None:
    """Same seed, with and without drafts: not only the same law but the same words."""
    model, asked = model_of("grouped"), prompts(4)
    settings = Sampling(temperature=0.9, top_p=0.9, presence_penalty=0.5)

    def run(drafter: Plain | None) -> list[list[int]]:
        engine = Engine(model, config=BUSY, drafter=drafter)
        requests = [
            Request(prompt=p, max_tokens=N, sampling=settings, seed=i, n=2)
            for i, p in enumerate(asked)
        ]
        return [s.ids for one in engine.generate(requests) for s in one.samples]

    want = run(None)
    texts = [p + w for p, w in zip([a for a in asked for _ in range(2)], want, strict=True)]
    for drafter in (Random(VOCAB), Oracle(texts, errs=True), Bush(texts, VOCAB)):
        assert run(drafter) == want


@pytest.mark.slow
def test_drawn_drafts_leave_the_law_as_it_is() -> None:
    model, prompt = model_of("grouped"), prompts(1)[0]
    settings = Sampling(temperature=0.5, top_k=3)
    n = 2000
    engine = Engine(
        model,
        config=EngineConfig(max_sequences=16, has_draft_control=False),
        drafter=DraftModel(small_but(model, "grouped"), VOCAB),
    )
    requests = [Request(prompt=prompt, max_tokens=3, sampling=settings, seed=i) for i in range(n)]
    said = [one.ids for one in engine.generate(requests)]
    assert 0 < engine.stats.n_accepted_tokens < engine.stats.n_draft_tokens
    # The law of the second token given the first, for each first token that is common.
    for first in {ids[0] for ids in said}:
        own = [ids for ids in said if ids[0] == first]
        with torch.no_grad():
            row = model(torch.tensor([[*prompt, first]]))[0, -1].double() / settings.temperature
        row[row < row.topk(3).values[-1]] = -torch.inf
        law = row.softmax(0)
        found = torch.bincount(torch.tensor([ids[1] for ids in own]), minlength=VOCAB)
        assert not found[law == 0].any()
        common = law * len(own) >= 5
        if int(common.sum()) < 2 or int(common.sum()) < int((law > 0).sum()):
            continue
        p = stats.chisquare(found[law > 0].numpy(), (law[law > 0] * len(own)).numpy()).pvalue
        assert p > 1e-4


class Tapping(Random):
    """Notes the features of every token, by its place."""

    taps = (0, 1)
    wants_logits = True

    def observe(self, one, verified) -> None:
        assert verified.features.shape[0] == verified.n
        for i, row in enumerate(verified.features):
            one.state = one.state or {}
            one.state[verified.start + i] = row
        if len(verified.tree):
            assert verified.logits.shape == (1 + len(verified.tree), VOCAB)
        self.found = getattr(self, "found", {})
        self.found[tuple(one.ids[: one.n_prompt])] = (one.ids, one.state)


@pytest.mark.parametrize("name", ["grouped", "hybrid"])
def test_features_are_those_of_the_targets_layers(name: str) -> None:
    model, asked = model_of(name), prompts(3)
    drafter = Tapping(VOCAB)
    engine = Engine(model, config=BUSY, drafter=drafter)
    engine.generate([Request(prompt=p, max_tokens=6) for p in asked])
    for ids, features in drafter.found.values():
        streams: list[torch.Tensor] = []
        handles = [
            model.layers[i].register_forward_hook(
                lambda _m, _i, out, into=streams: into.append(out)
            )
            for i in drafter.taps
        ]
        with torch.no_grad():
            model(torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        want = torch.cat([streams[0], streams[1]], dim=-1)[0]
        assert len(features) >= len(ids) - 1
        for place, row in features.items():
            torch.testing.assert_close(row, want[place], atol=1e-4, rtol=1e-3)


def test_control_measures_and_turns_drafts_off_where_they_do_not_pay() -> None:
    model, asked = model_of("grouped"), prompts(3)
    config = EngineConfig(max_batch_tokens=48, max_sequences=4, block_tokens=4, n_blocks=64)
    engine = Engine(model, config=config, drafter=Random(VOCAB))
    costs = engine.drafts.control.costs
    assert costs.rows[0] == 1
    assert len(costs.rows) > 3
    assert engine.memory.n_held == 0
    assert engine.memory.hits.n_asked == 0
    engine.drafts.control = Control(Costs((1, 2, 4), (1.0, 1.9, 3.6)))
    got = engine.generate([Request(prompt=p, max_tokens=30) for p in asked])
    used = [one.samples[0].usage for one in got]
    assert all(u.n_drafted < 10 for u in used)
    assert engine.drafts.control.n_off >= 1


@pytest.mark.parametrize("name", ["window", "mamba2", "hybrid"])
def test_costs_are_measured_on_every_kind_of_memory(name: str) -> None:
    config = EngineConfig(max_batch_tokens=48, max_sequences=2, block_tokens=4, n_blocks=64)
    runner = Engine(model_of(name), config=config).runner
    costs = costs_of(runner, config)
    assert all(s > 0 for s in costs.seconds)
    assert runner.memory.n_held == 0


class Broken(Plain):
    def propose(self, asked):
        raise RuntimeError("no idea")


def test_a_drafter_that_fails_costs_its_drafts_and_nothing_else() -> None:
    model, asked = model_of("grouped"), prompts(2)
    want = [generate(model, p, max_tokens=6)[0].ids for p in asked]
    engine = Engine(model, config=BUSY, drafter=Broken())
    with pytest.warns(UserWarning, match="no idea"):
        got = engine.generate([Request(prompt=p, max_tokens=6) for p in asked])
    assert [one.ids for one in got] == want


def test_what_cannot_be_verified_is_refused_with_its_reason() -> None:
    lookup, trees = PromptLookup(), Lookahead()
    with pytest.raises(InputError, match="choose among all tokens"):
        Engine(model_of("expert choice"), config=BUSY, drafter=lookup)
    with pytest.raises(InputError, match="draft chains"):
        Engine(model_of("mamba2"), config=BUSY, drafter=trees)
    model = model_of("grouped")
    with pytest.raises(InputError, match="among their siblings"):
        Engine(model, config=EngineConfig(is_exact=True), drafter=trees)
    bounded = EngineConfig(cache=CacheConfig(policy="streaming", budget=16))
    with pytest.raises(InputError, match="take chains"):
        Engine(model, config=bounded, drafter=trees)


def test_time_between_tokens_is_shared_by_those_of_a_draft() -> None:
    model, asked = model_of("grouped"), prompts(1)
    want = generate(model, asked[0], max_tokens=N)[0].ids
    engine = Engine(model, config=BUSY, drafter=Oracle([asked[0] + want]))
    started = time.monotonic()
    engine.generate([Request(prompt=asked[0], max_tokens=N)])
    itl = engine.stats.itl_s
    assert itl.n == N - 1
    assert itl.total <= time.monotonic() - started
