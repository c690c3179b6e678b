"""An engine under random load on a model without weights: what must hold after every step."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from decode.engine.simulated import VOCAB, Guesser, SimulatedRunner, greedy
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from worthit.decode.engine import Engine, EngineConfig, Request, Sample
from worthit.decode.sampling import Sampling

KINDS: dict[str, dict[str, object]] = {
    "everything": {},
    "window": {"window": 6},
    "state": {"has_state": True},
    "state alone": {"has_state": True, "has_full": False},
    "all kinds": {"window": 6, "has_state": True},
    "no sharing": {"can_share": False},
}
WINDOWS = {"window": 6, "all kinds": 6}


class Load:
    """An engine, its clients, and what each of them should be told."""

    def __init__(self, kind: str, *, seed: int = 0, drafts: bool = False) -> None:
        self.window = WINDOWS.get(kind)
        self.now = 0.0
        config = EngineConfig(
            max_batch_tokens=16, max_sequences=5, max_waiting=10**6, block_tokens=4, patience_s=50
        )
        self.runner = SimulatedRunner(**KINDS[kind])
        self.engine = Engine(
            config=config,
            runner=self.runner,
            drafter=Guesser(seed, window=self.window) if drafts else None,
            clock=lambda: self.now,
        )
        self.requests: dict[str, Request] = {}
        self.samples: dict[tuple[str, int], Sample] = {}
        self.aborted: set[str] = set()

    def add(self, prompt: list[int], n_tokens: int, **options: object) -> str:
        request = Request(prompt=prompt, max_tokens=n_tokens, stop_ids=(), **options)
        name = self.engine.add(request)
        self.requests[name] = request
        for index in range(request.n):
            self.samples[name, index] = Sample()
        return name

    def step(self) -> None:
        self.now += 1
        n_before = len(self.runner.log)
        for output in self.engine.step():
            sample = self.samples[output.id, output.index]
            assert sample.finish_reason is None, "said something after its end"
            assert output.error is None, output.error
            sample.add(output)
        for parts in self.runner.log[n_before:]:
            assert sum(n for _, _, n in parts) <= 16
            assert len(parts) <= 5
        self.check()

    def check(self) -> None:
        engine = self.engine
        assert len(engine.scheduler.running) <= 5
        live = [s for group in engine._live.values() for s in group]
        holding = [s for s in live if s.holding is not None]
        assert {id(s) for s in holding} == {id(s) for s in engine.scheduler.running}
        for i, pool in enumerate(engine.memory.pools):
            held = Counter(b for s in holding for b in s.holding.tables[i].blocks if b >= 0)
            assert [held[b] for b in range(pool.n_blocks)] == pool.holders
            assert pool.n_held + pool.n_free == pool.n_blocks

    def drain(self, limit: int = 10**6) -> None:
        for _ in range(limit):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work
        assert all(s.finish_reason for s in self.samples.values())
        assert engine_is_empty(self.engine)

    def verify(self) -> None:
        """Greedy samples are what the hash alone says; others what an engine of their own says."""
        for (name, index), sample in self.samples.items():
            request = self.requests[name]
            if name in self.aborted:
                assert sample.finish_reason in ("abort", "length")
            else:
                assert sample.finish_reason == "length"
                assert len(sample.ids) == request.max_tokens
                assert sample.usage.n_completion == request.max_tokens
            n = len(sample.ids)
            if request.sampling.is_greedy:
                assert sample.ids == greedy(request.prompt, n, window=self.window)
            elif index == 0:
                assert sample.ids == self.alone(request)[:n]

    def alone(self, request: Request) -> list[int]:
        runner = SimulatedRunner(
            window=self.window,
            can_share=False,
            n_blocks=99,
            has_full=self.runner.has_full,
            has_state=self.runner.has_state,
        )
        config = EngineConfig(max_batch_tokens=64, max_sequences=1, block_tokens=4)
        return Engine(config=config, runner=runner).generate([request])[0].ids


def engine_is_empty(engine: Engine) -> bool:
    return (
        engine.memory.n_held == 0
        and not engine.scheduler.running
        and not engine.scheduler.waiting
        and engine.scheduler.n_waiting == 0
    )


def random_request(dice: random.Random) -> tuple[list[int], int, dict[str, object]]:
    # Few different beginnings, so that prefixes are shared, cut off and grown.
    base = [dice.randrange(3)] * dice.choice([0, 3, 4, 8, 9, 16])
    prompt = base + [dice.randrange(VOCAB) for _ in range(dice.randrange(1, 9))]
    n_tokens = dice.randrange(1, 14)
    options: dict[str, object] = {"priority": dice.choice([0, 0, 0, 1, -2])}
    options["n"] = dice.choice([1, 1, 1, 1, 2, 3])
    options["salt"] = dice.choice(["", "", "tenant"])
    if dice.random() < 0.3:
        options["sampling"] = Sampling(temperature=0.9, top_k=20)
        options["seed"] = dice.randrange(1000)
    return prompt, n_tokens, options


def run_load(kind: str, n_requests: int, *, seed: int, drafts: bool) -> Load:
    dice = random.Random(seed)
    load = Load(kind, seed=seed, drafts=drafts)
    added = 0
    while added < n_requests:
        for _ in range(dice.choice([0, 0, 1, 1, 2, 5])):
            prompt, n_tokens, options = random_request(dice)
            load.add(prompt, n_tokens, **options)
            added += 1
        if dice.random() < 0.05 and load.engine._live:
            victim = dice.choice(list(load.engine._live))
            load.engine.abort(victim)
            load.aborted.add(victim)
        load.step()
    load.drain()
    return load


@pytest.mark.parametrize("drafts", [False, True], ids=["plain", "drafts"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_random_load_is_served_as_if_everybody_were_alone(kind: str, drafts: bool) -> None:
    load = run_load(kind, 120, seed=1, drafts=drafts)
    load.verify()
    stats = load.engine.stats
    # Control: what is tested did happen.
    assert stats.finished["abort"] > 0
    if kind != "state alone":
        assert stats.n_preemptions > 0
    if kind != "no sharing":
        assert stats.n_prefix_found > 0
    if drafts:
        assert 0 < stats.n_accepted_tokens < stats.n_draft_tokens


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [2, 3])
def test_a_long_random_load(kind: str, seed: int) -> None:
    run_load(kind, 2_000, seed=seed, drafts=seed == 3).verify()


class Machine(RuleBasedStateMachine):
    """Any order of arrivals, aborts and steps."""

    @initialize(kind=st.sampled_from(sorted(KINDS)), drafts=st.booleans())
    def start(self, kind: str, drafts: bool) -> None:
        self.load = Load(kind, drafts=drafts)

    @rule(
        start=st.integers(0, 2),
        n_same=st.sampled_from([0, 3, 4, 8, 9, 16]),
        rest=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9),
        n_tokens=st.integers(1, 12),
        n=st.integers(1, 3),
        priority=st.integers(-1, 1),
    )
    def arrive(
        self, start: int, n_same: int, rest: list[int], n_tokens: int, n: int, priority: int
    ) -> None:
        self.load.add([start] * n_same + rest, n_tokens, n=n, priority=priority)

    @precondition(lambda self: self.load.engine._live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.load.engine._live)))
        self.load.engine.abort(name)
        self.load.aborted.add(name)

    @rule(n=st.integers(1, 6))
    def run(self, n: int) -> None:
        for _ in range(n):
            self.load.step()

    @rule()
    def forget(self) -> None:
        self.load.engine.memory.forget_prefixes()

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "load"):
            self.load.check()

    def teardown(self) -> None:
        if hasattr(self, "load"):
            self.load.drain(2_000)
            self.load.verify()


Machine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestMachine = Machine.TestCase
