"""What servers meet: refusals, aborts, failures, priorities, shared prefixes, drafts."""

from __future__ import annotations

import math
from collections.abc import Sequence as Ids
from dataclasses import replace

import pytest
import torch
from decode.engine.simulated import SimulatedRunner, greedy
from decode.engine.test_engine import model_of, prompts

from worthit.decode.cache import paged
from worthit.decode.engine import Engine, EngineConfig, QueueFull, Request
from worthit.decode.generate import generate
from worthit.decode.sampling import Sampling
from worthit.decode.speculative.drafter import Asked, Plain
from worthit.decode.speculative.tree import Tree
from worthit.errors import InputError

CONFIG = EngineConfig(max_batch_tokens=16, max_sequences=4, block_tokens=4, n_blocks=40)


def drain(engine: Engine) -> dict[str, str]:
    reasons = {}
    while engine.has_work:
        for output in engine.step():
            if output.finish_reason:
                reasons[output.id] = output.finish_reason
    return reasons


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": []}, "prompt: must have at least one token"),
        ({"prompt": [1, 40]}, "prompt: ids must be whole numbers from 0 to 39"),
        ({"prompt": [-1]}, "prompt: ids must be whole numbers"),
        ({"prompt": [1] * 64}, "maximum context length is 64 tokens, and the prompt has 64"),
        ({"prompt": [1] * 60, "max_tokens": 5}, "ask for at most 4"),
        ({"max_tokens": 0}, "max_tokens: must be from 1"),
        ({"n": 0}, "n: must be from 1 to 128, got 0"),
        ({"n": 10**9}, "n: must be from 1 to 128"),
        ({"seed": -1}, "seed: must be"),
        ({"logprobs": 1000}, "logprobs: must be from 0 to 50"),
        ({"stop": ["x"]}, "stop: needs the model's tokenizer"),
        ({"prompt": "text"}, "text needs the model's tokenizer"),
        ({"sampling": Sampling(logit_bias={40: 1.0})}, "logit_bias: ids must be from 0 to 39"),
    ],
)
def test_what_can_never_be_served_is_refused(options: dict[str, object], message: str) -> None:
    engine = Engine(model_of("grouped"), config=CONFIG)
    with pytest.raises(InputError, match=message):
        engine.add(Request(**{"prompt": [1], "max_tokens": 4, **options}))
    assert not engine.has_work


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_absurd_sampling_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="temperature"):
        Sampling(temperature=value)
    with pytest.raises(InputError, match=r"logit_bias\[3\]"):
        Sampling(logit_bias={3: math.nan})


def test_a_request_larger_than_the_whole_cache_is_refused() -> None:
    config = EngineConfig(max_batch_tokens=16, max_sequences=4, block_tokens=4, n_blocks=5)
    engine = Engine(model_of("grouped"), config=config)
    with pytest.raises(InputError, match="the cache of this engine holds 20 tokens"):
        engine.add(Request(prompt=[1] * 16, max_tokens=5))
    # The largest that fits, twice at once: one after the other, each by the other's blocks.
    got = engine.generate([Request(prompt=[i] * 16, max_tokens=4) for i in (1, 2)])
    assert [len(one.ids) for one in got] == [4, 4]


def test_a_full_queue_says_when_to_come_back() -> None:
    config = EngineConfig(
        max_batch_tokens=16, max_sequences=2, max_waiting=3, block_tokens=4, n_blocks=40
    )
    engine = Engine(model_of("grouped"), config=config)
    for _ in range(5):
        engine.add(Request(prompt=[1, 2], max_tokens=3))
    with pytest.raises(QueueFull, match="waiting already") as caught:
        engine.add(Request(prompt=[1, 2], max_tokens=3))
    assert caught.value.retry_after_s >= 1
    drain(engine)
    engine.add(Request(prompt=[1, 2], max_tokens=3))
    assert set(drain(engine).values()) == {"length"}


def test_an_abort_frees_blocks_and_leaves_others_alone() -> None:
    model = model_of("grouped")
    asked = prompts(3)
    want = generate(model, asked[0], max_tokens=12)[0].ids
    engine = Engine(model, config=CONFIG)
    kept = engine.add(Request(prompt=asked[0], max_tokens=12))
    running = engine.add(Request(prompt=asked[1], max_tokens=12, n=2))
    waiting = engine.add(Request(prompt=asked[2], max_tokens=12, n=3))
    said: list[int] = []
    for step in range(30):
        if step == 2:
            held = engine.memory.n_held
            assert engine.abort(running)
            assert engine.abort(waiting)
            assert not engine.abort("nobody")
            assert engine.memory.n_held < held
        for output in engine.step():
            if output.id == kept:
                said += output.ids
    assert said == want
    assert engine.stats.finished == {"abort": 5, "length": 1}
    assert engine.memory.n_held == 0
    assert not engine.has_work


def test_a_failing_pass_ends_those_who_took_part_and_nobody_else() -> None:
    runner = SimulatedRunner()
    engine = Engine(runner=runner, config=EngineConfig(max_batch_tokens=16, max_sequences=2))
    whole = runner.run

    def failing(parts: list[object]) -> torch.Tensor:
        raise RuntimeError("out of everything")

    names = [engine.add(Request(prompt=[i, 1], max_tokens=4, stop_ids=())) for i in range(3)]
    engine.step()
    runner.run = failing
    outputs = engine.step()
    assert {o.id for o in outputs if o.finish_reason == "error"} == set(names[:2])
    assert outputs[0].error == "RuntimeError: out of everything"
    assert engine.memory.n_held == 0
    runner.run = whole
    assert drain(engine) == {names[2]: "length"}
    assert engine.stats.n_errors == 1


def test_higher_priority_goes_first_and_nobody_starves() -> None:
    now = [0.0]
    config = EngineConfig(max_batch_tokens=16, max_sequences=1, block_tokens=4, patience_s=10)
    engine = Engine(runner=SimulatedRunner(), config=config, clock=lambda: now[0])

    def add(priority: int) -> str:
        return engine.add(Request(prompt=[1, 2], max_tokens=4, stop_ids=(), priority=priority))

    first, low = add(0), add(0)
    engine.step()
    high, order = add(1), []
    while engine.has_work:
        now[0] += 1
        order += [o.id for o in engine.step() if o.finish_reason]
    # The urgent one took the only place: what was put back said nothing twice (see properties).
    assert order == [high, first, low]
    assert engine.stats.n_preemptions == 1
    # Under a flood of urgent requests a patient one waits its ten seconds, not for ever.
    patient = add(0)
    asked_at, done_at = now[0], None
    for _ in range(60):
        now[0] += 1
        if engine.scheduler.n_waiting < 3:
            add(1)
        for output in engine.step():
            if output.id == patient and output.finish_reason:
                done_at = now[0]
    assert done_at is not None
    assert 10 < done_at - asked_at < 40


# Prefixes


@pytest.mark.parametrize("name", ["grouped", "latent", "window", "mamba2", "hybrid", "rwkv"])
def test_a_known_prefix_is_not_computed_again_and_changes_nothing(name: str) -> None:
    model = model_of(name)
    torch.manual_seed(3)
    system = torch.randint(40, (24,)).tolist()
    asked = [system + p for p in prompts(4)]
    want = [generate(model, p, max_tokens=6)[0].ids for p in asked]
    engine = Engine(model, config=CONFIG)
    got = [engine.generate([Request(prompt=p, max_tokens=6)])[0] for p in asked]
    assert [one.ids for one in got] == want
    cached = [one.samples[0].usage.n_cached for one in got]
    assert cached[0] == 0
    if name == "grouped":
        assert cached[1:] == [24] * 3
        # The same prompt again: all but its last block, and at least the last token is computed.
        again = engine.generate([Request(prompt=asked[1], max_tokens=6)])[0]
        assert again.ids == want[1]
        assert again.samples[0].usage.n_cached == (len(asked[1]) - 1) // 4 * 4
    else:
        again = engine.generate([Request(prompt=asked[1], max_tokens=6)])[0]
        assert again.ids == want[1]
        assert again.samples[0].usage.n_cached > 0
    before = engine.stats.n_step_tokens
    other = engine.generate([Request(prompt=asked[1], max_tokens=6, salt="other")])[0]
    assert other.ids == want[1]
    assert other.samples[0].usage.n_cached == 0
    assert engine.stats.n_step_tokens - before == len(asked[1]) + 5


def test_a_conversation_finds_what_was_said() -> None:
    model = model_of("grouped")
    engine = Engine(model, config=CONFIG)
    prompt = list(range(9))
    said = engine.generate([Request(prompt=prompt, max_tokens=10)])[0].ids
    turn = engine.generate([Request(prompt=[*prompt, *said, 1, 2], max_tokens=3)])[0]
    # The last token said was never computed.
    assert turn.samples[0].usage.n_cached == (9 + 10 - 1) // 4 * 4
    assert turn.ids == generate(model, [*prompt, *said, 1, 2], max_tokens=3)[0].ids


@pytest.mark.parametrize("name", ["grouped", "window", "mamba2"])
def test_a_prompt_that_ends_with_its_first_token_is_known_too(name: str) -> None:
    engine = Engine(model_of(name), config=CONFIG)
    prompt = [i % 40 for i in range(30)]
    engine.generate([Request(prompt=prompt, max_tokens=1)])
    again = engine.generate([Request(prompt=[*prompt, 1, 2], max_tokens=1)])[0]
    assert again.samples[0].usage.n_cached == 28


# Preemption, and drafts, on real layers


@pytest.mark.parametrize("gathered", [0, 2048], ids=["one by one", "gathered"])
@pytest.mark.parametrize("name", ["grouped", "latent", "chosen keys", "hybrid"])
def test_preempted_requests_say_what_they_would_have_said(
    name: str, gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "GATHERED_TOKENS", gathered)
    model = model_of(name)
    asked = prompts(6, seed=4)
    want = [generate(model, p, max_tokens=20)[0].ids for p in asked]
    config = EngineConfig(max_batch_tokens=16, max_sequences=4, block_tokens=4, n_blocks=14)
    engine = Engine(model, config=config)
    got = engine.generate([Request(prompt=p, max_tokens=20) for p in asked])
    assert [one.ids for one in got] == want
    assert engine.stats.n_preemptions > 0
    assert sum(one.samples[0].usage.n_preemptions for one in got) == engine.stats.n_preemptions
    assert engine.memory.n_held == 0


class Oracle(Plain):
    """Knows what will be said; every third guess is wrong."""

    def __init__(self, texts: list[list[int]]) -> None:
        self.texts, self.n = texts, 0

    def propose(self, asked: Ids[Asked]) -> list[Tree]:
        return [self._of(one) for one in asked]

    def _of(self, one: Asked) -> Tree:
        text = next(t for t in self.texts if t[: len(one.ids)] == one.ids)
        draft = text[len(one.ids) :][: min(3, one.most)]
        self.n += 1
        if self.n % 3 == 0 and draft:
            draft[-1] = (draft[-1] + 1) % 40
        return Tree.chain(draft)


@pytest.mark.parametrize("name", ["grouped", "latent", "window", "mamba2", "hybrid", "recursive"])
def test_drafts_change_how_fast_and_not_what(name: str) -> None:
    model = model_of(name)
    asked = prompts(5)
    want = [generate(model, p, max_tokens=12)[0].ids for p in asked]
    oracle = Oracle([p + w for p, w in zip(asked, want, strict=True)])
    config = replace(CONFIG, has_draft_control=False)
    engine = Engine(model, config=config, drafter=oracle)
    got = engine.generate([Request(prompt=p, max_tokens=12, logprobs=0) for p in asked])
    assert [one.ids for one in got] == want
    stats = engine.stats
    assert 0 < stats.n_accepted_tokens < stats.n_draft_tokens
    usage = [one.samples[0].usage for one in got]
    assert sum(u.n_accepted for u in usage) == stats.n_accepted_tokens
    plain = Engine(model, config=CONFIG)
    plain.generate([Request(prompt=p, max_tokens=12) for p in asked])
    if name == "grouped":
        assert stats.n_steps < plain.stats.n_steps * 0.6
    assert [s.token for one in got for s in one.samples[0].logprobs] == [
        t for ids in want for t in ids
    ]


# Chunks


@pytest.mark.parametrize("name", ["grouped", "latent", "window", "mamba2", "hybrid", "delta"])
def test_any_chunks_give_the_same_numbers(name: str) -> None:
    model = model_of(name).double()
    asked = prompts(4, seed=8)
    found = []
    for budget, size in [(4, 4), (7, 2), (64, 16)]:
        config = EngineConfig(max_batch_tokens=budget, max_sequences=4, block_tokens=size)
        engine = Engine(model, config=config)
        requests = [Request(prompt=p, max_tokens=5, logprobs=5) for p in asked]
        got = engine.generate(requests)
        found.append([value for one in got for t in one.samples[0].logprobs for _, value in t.top])
    for other in found[1:]:
        # States are kept in fp32 by some of these layers.
        tolerance = 1e-10 if name in ("grouped", "latent", "window") else 1e-4
        assert other == pytest.approx(found[0], abs=tolerance)


def test_a_long_prompt_does_not_stop_others() -> None:
    engine = Engine(
        runner=SimulatedRunner(n_blocks=100, context_len=400, step_tokens=8),
        config=EngineConfig(max_batch_tokens=8, max_sequences=4, block_tokens=4),
    )
    chatting = engine.add(Request(prompt=[1, 2], max_tokens=40, stop_ids=()))
    engine.step()
    engine.add(Request(prompt=[3] * 200, max_tokens=1, stop_ids=()))
    for _ in range(25):
        said = [o for o in engine.step() if o.id == chatting]
        assert len(said) == 1  # a token in every step, while 7 of the prompt are computed
    drain(engine)
    assert greedy([1, 2], 3)  # control: the reference says something
