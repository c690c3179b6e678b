"""Turns on the clock: every arm once a round, in any order, warm, and nothing between readings."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace
from pathlib import Path

from lab.fake import FAKE

from worthit.lab.context import Context, resolve
from worthit.lab.experiment import Arm, Experiment, Timing
from worthit.lab.jobs import percentile, take_turns
from worthit.lab.measure import measure

N_ROUNDS = 12


class Clock:
    """Time passes by what is called, and ever slower: a machine that is warming up or busy."""

    def __init__(self) -> None:
        self.now, self.drift = 0.0, 1.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def spend(self, arm: str, seconds: float) -> None:
        self.log.append(arm)
        self.now += seconds * self.drift
        self.drift *= 1.05


def timing(clock: Clock, *, per: str | None = None) -> Timing:
    def prepare(context: Context, arm: Arm, seed: int) -> object:
        def once() -> dict[str, float]:
            assert not gc.isenabled()
            clock.spend(arm.id, arm.options["seconds"])
            return {"tokens": 4.0}

        return once

    return Timing(prepare=prepare, per=per, n_warmup=2)  # type: ignore[arg-type]  # as prepare


def context_of(experiment: Experiment, folder: Path) -> Context:
    return Context(setting=resolve(experiment, "quick"), folder=folder)


def test_arms_take_turns(tmp_path: Path) -> None:
    clock = Clock()
    found = take_turns(timing(clock), context_of(FAKE, tmp_path), 0, N_ROUNDS, clock)
    rounds = [clock.log[i : i + 2] for i in range(0, len(clock.log), 2)]
    assert all(sorted(pair) == ["plain", "quick"] for pair in rounds)
    assert len(rounds) == 2 + N_ROUNDS
    # Neither is always first: what the first pays, both pay.
    assert set(Counter(pair[0] for pair in rounds)) == {"plain", "quick"}
    # The clock slows fourfold from beginning to end, and the ratio is still 2 within a step of it.
    ratio = found["plain"].values["seconds"] / found["quick"].values["seconds"]
    assert 2 / 1.06 < ratio < 2 * 1.06
    assert found["plain"].n == N_ROUNDS
    assert gc.isenabled()
    again = Clock()
    take_turns(timing(again), context_of(FAKE, tmp_path), 0, N_ROUNDS, again)
    assert again.log == clock.log


def test_seconds_are_per_what_is_named(tmp_path: Path) -> None:
    medians = []
    for per in (None, "tokens"):
        clock = Clock()
        found = take_turns(timing(clock, per=per), context_of(FAKE, tmp_path), 0, 3, clock)
        medians.append(found["plain"].values["seconds"])
    assert medians[0] == 4 * medians[1]


def test_percentiles() -> None:
    low, high = (percentile([5.0, 1.0, 2.0, 4.0, 3.0], share) for share in (0.2, 0.8))
    assert (low, high) == (1.8, 4.2)


def test_a_seed_of_a_timing_is_one_piece(tmp_path: Path) -> None:
    """An arm that lost its cell cannot be timed alone: all arms of the seed are."""
    calls: list[tuple[str, int]] = []

    def prepare(context: Context, arm: Arm, seed: int) -> object:
        calls.append((arm.id, seed))
        return lambda: {"loss": 1.0}

    budgets = {name: replace(b, n_rounds=2, n_seeds=2) for name, b in FAKE.budgets.items()}
    experiment = replace(FAKE, how=Timing(prepare=prepare), budgets=budgets)  # type: ignore[arg-type]  # as prepare
    outcome = measure(experiment, out=tmp_path, is_quiet=True)
    assert outcome["arms"]["plain"]["spread"]["seconds"]["0"]["n"] == 2
    calls.clear()
    (Path(outcome["folder"]) / "cells" / "quick" / "1" / "result.json").unlink()
    measure(experiment, out=tmp_path, is_quiet=True)
    assert calls == [("plain", 1), ("quick", 1)]
