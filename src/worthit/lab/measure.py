"""`worthit measure`: resolve, forecast, run what is missing, read what there is."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from worthit.calibrate._probes import n_cores
from worthit.errors import InputError
from worthit.lab.catalogue import find
from worthit.lab.context import Context, Setting, resolve
from worthit.lab.experiment import Custom, Experiment, Timing, Training
from worthit.lab.jobs import Job, custom_jobs, run_jobs, timing_jobs
from worthit.lab.matching import counts, matched
from worthit.lab.outcome import Record, make_outcome
from worthit.lab.progress import Watch, forecast, say, watching
from worthit.lab.runs import Run, now, open_run
from worthit.scorecard.results import runs_home

Watching = Callable[[Sequence[Job]], AbstractContextManager[Watch]]


def measure(
    name: str | Experiment,
    *,
    budget: str = "quick",
    n_seeds: int | None = None,
    out: str | Path | None = None,
    n_threads: int | None = None,
    command: str | None = None,
    is_continued: bool = True,
    is_quiet: bool = False,
) -> Record:
    """Run an experiment, or what of it is missing, and return its outcome.

    Args:
        name: an experiment, or a technique that has one.
        budget: `smoke` under a minute, `quick` a few, `full` longer.
        n_seeds: in place of the budget's; more of them continue the same run.
        out: where runs are kept; the user's data folder by default.
        n_threads: that torch may use; by default as many as it would.
        command: what reproduces it, for the record.
        is_continued: go on from what an earlier run of the same configuration left.
        is_quiet: say nothing on stderr.

    Raises:
        InputError: no such experiment or budget, no seeds, another process at the same run.
        KeyboardInterrupt: stopped; every cell that was done is kept, and the same call continues.
    """
    experiment = name if isinstance(name, Experiment) else find(name)
    setting = resolve(experiment, budget)
    seeds = range(_n_seeds(setting, n_seeds))
    with _threads(n_threads) as n, _termination_as_interrupt():
        counted = counts(setting)
        checks = matched(setting, counted)
        predictions = list(experiment.predicted(setting)) if experiment.predicted else []
        command = command or command_for(experiment, budget, n_seeds)
        with open_run(
            setting,
            home=runs_home() if out is None else Path(out),
            seeds=seeds,
            n_threads=n,
            command=command,
            is_continued=is_continued,
        ) as run:
            context = Context(
                setting=setting, folder=run.scratch("shared"), seeds=tuple(seeds), n_threads=n
            )
            _run(experiment, context, run, seeds, say if not is_quiet else lambda text: None)
            outcome = make_outcome(
                setting,
                {arm.id: {s: run.cell(arm.id, s) or {} for s in seeds} for arm in experiment.arms},
                predictions=predictions,
                counted=counted,
                matched=checks,
                tuning=_tuning(context, run),
                environment=run.record["environment"],
                command=command,
                date=now(),
                key=run.key,
                folder=str(run.folder),
            )
            run.save_result(outcome)
    return outcome


def command_for(experiment: Experiment, budget: str, n_seeds: int | None) -> str:
    """The command that reproduces a run."""
    seeds = "" if n_seeds is None else f" --seeds {n_seeds}"
    return f"worthit measure {experiment.id} --budget {budget}{seeds}"


def _n_seeds(setting: Setting, n_seeds: int | None) -> int:
    if n_seeds is None:
        return setting.budget.n_seeds
    if n_seeds < 1:
        raise InputError(f"--seeds: must be at least 1, got {n_seeds}; 5 make an interval")
    return n_seeds


def _run(
    experiment: Experiment,
    context: Context,
    run: Run,
    seeds: Sequence[int],
    tell: Callable[[str], None],
) -> None:
    """Do what is missing."""
    n_cells = len(seeds) * len(experiment.arms)
    jobs = _jobs(context, run, seeds)
    if not jobs:
        tell(f"all {n_cells} cells are there: {run.folder}")
        return
    tell(
        f"{experiment.id}, {context.setting.budget_name}: "
        f"{forecast(jobs, n_cells, context.n_threads)}; Ctrl-C is safe, the same command continues"
    )
    quiet = contextlib.nullcontext(Watch(jobs))
    with quiet if tell is not say else watching(jobs) as watch:
        run_jobs(jobs, watch)


def _jobs(context: Context, run: Run, seeds: Sequence[int]) -> list[Job]:
    how = context.setting.experiment.how
    if isinstance(how, Training):
        from worthit.lab.training import training_jobs

        return training_jobs(how, context, run, seeds)
    if isinstance(how, Timing):
        return timing_jobs(how, context, run, seeds)
    assert isinstance(how, Custom)
    return custom_jobs(how, context, run, seeds)


def _tuning(context: Context, run: Run) -> dict[str, Any]:
    experiment = context.setting.experiment
    if not isinstance(experiment.how, Training):
        return {}
    from worthit.lab.training import tuning_of

    return {arm.id: tuning_of(context, run, arm) for arm in experiment.arms}


@contextlib.contextmanager
def _threads(n_threads: int | None) -> Iterator[int]:
    """As many threads as asked for inside the block."""
    if n_threads is not None and n_threads < 1:
        raise InputError(f"--threads: must be at least 1, got {n_threads}; here are {n_cores()}")
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads or before)
    try:
        yield n_threads or before
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does; signals can only be caught in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
