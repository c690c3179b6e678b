"""The work of a run, cut into pieces that are each kept when they are done.

A job knows roughly how long it takes, so that a run can say its cost beforehand; running one of
them leaves cells behind. What is done already makes no job.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Timing
from worthit.lab.runs import Run

# Progress within a job: the share that is done, and what is going on.
Tick = Callable[[float, str], None]
# What a cell is taken to cost where its experiment does not say.
USUAL_CELL_S = 5.0


@dataclass(frozen=True)
class Job:
    """A piece of work: its label, its seconds by forecast, the cells it makes, and how."""

    label: str
    seconds: float
    n_cells: int
    do: Callable[[Tick], None]


def custom_jobs(how: Custom, context: Context, run: Run, seeds: Sequence[int]) -> list[Job]:
    """One job a cell, seed by seed, so that what is done early is paired already."""
    cost = context.budget.seconds or USUAL_CELL_S

    def job(arm: Arm, seed: int) -> Job:
        def do(tick: Tick) -> None:
            started = time.perf_counter()
            measures = how.run(context.ticking(tick), arm, seed)
            run.save_cell(arm.id, seed, measures, seconds=time.perf_counter() - started)

        return Job(f"{arm.id}, seed {seed}", cost, 1, do)

    arms = context.setting.experiment.arms
    jobs = [job(arm, seed) for seed in seeds for arm in arms if run.cell(arm.id, seed) is None]
    return _after_setup(context, jobs)


def timing_jobs(how: Timing, context: Context, run: Run, seeds: Sequence[int]) -> list[Job]:
    """One job a seed, with all arms: they take turns, so none can be timed alone."""
    arms = context.setting.experiment.arms
    cost = (context.budget.seconds or USUAL_CELL_S) * len(arms)

    def job(seed: int) -> Job:
        def do(tick: Tick) -> None:
            n_rounds = context.budget.n_rounds
            for arm, found in take_turns(how, context.ticking(tick), seed, n_rounds).items():
                run.save_cell(arm, seed, found.values, spread=list(found.spread), n=found.n)

        return Job(f"seed {seed}", cost, len(arms), do)

    jobs = [job(seed) for seed in seeds if any(run.cell(arm.id, seed) is None for arm in arms)]
    return _after_setup(context, jobs)


def _after_setup(context: Context, jobs: list[Job]) -> list[Job]:
    """The first job makes what all share, and takes as much longer."""
    if not jobs or context.setting.experiment.setup is None:
        return jobs
    longer = jobs[0].seconds + context.budget.setup_seconds
    return [replace(jobs[0], seconds=longer), *jobs[1:]]


@dataclass(frozen=True)
class Timed:
    """One arm on the clock: medians, and the 20th and 80th percentile of its seconds."""

    values: dict[str, float]
    spread: tuple[float, float]
    n: int


def take_turns(
    how: Timing,
    context: Context,
    seed: int,
    n_rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timed]:
    """Time every arm of one seed, each once a round, in an order that is drawn anew each round.

    Nothing is collected between the two readings of the clock; warm-up turns are not counted.
    """
    arms = context.setting.experiment.arms
    calls = {arm.id: how.prepare(context, arm, seed) for arm in arms}
    order = random.Random(seed)
    seconds: dict[str, list[float]] = {arm: [] for arm in calls}
    others: dict[str, dict[str, list[float]]] = {arm: {} for arm in calls}
    was_collecting = gc.isenabled()
    # What is there by now is not looked at again: collecting between turns is quick.
    gc.collect()
    gc.freeze()
    try:
        for round_ in range(-how.n_warmup, n_rounds):
            context.tick(max(round_, 0) / n_rounds, "warming up" if round_ < 0 else "")
            for arm in order.sample(list(calls), len(calls)):
                gc.collect()
                gc.disable()
                started = clock()
                said = calls[arm]() or {}
                taken = clock() - started
                if was_collecting:
                    gc.enable()
                if round_ < 0:
                    continue
                seconds[arm].append(taken / said[how.per] if how.per else taken)
                for name, number in said.items():
                    others[arm].setdefault(name, []).append(float(number))
    finally:
        gc.unfreeze()
        if was_collecting:
            gc.enable()
    return {arm: _timed(seconds[arm], others[arm]) for arm in calls}


def _timed(seconds: list[float], others: dict[str, list[float]]) -> Timed:
    values = {name: statistics.median(numbers) for name, numbers in others.items()}
    return Timed(
        {**values, "seconds": statistics.median(seconds)},
        (percentile(seconds, 0.2), percentile(seconds, 0.8)),
        len(seconds),
    )


def percentile(numbers: Sequence[float], share: float) -> float:
    """The number below which `share` of `numbers` lie, between neighbours in a line.

    >>> percentile([1.0, 2.0, 3.0], 0.5), percentile([0.0, 10.0], 0.2)
    (2.0, 2.0)
    """
    ordered = sorted(numbers)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def run_jobs(jobs: Sequence[Job], watch: Any) -> None:
    """Do every job, reporting to `watch` (see `worthit.lab.progress`)."""
    for i, job in enumerate(jobs):
        watch.start(i, job)
        job.do(watch.tick)
        watch.end(i, job)
