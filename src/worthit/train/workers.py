"""Runs in processes of their own, one thread each.

Processes come from a server that has imported torch and used nothing of it (where the system has
such servers): a fork of this process would have lost its threads, and a fresh start takes seconds.
What a run needs crosses to its process as Python sends things (never to a file): functions by name,
so that lambdas and locally defined ones cannot go.
"""

from __future__ import annotations

import multiprocessing
import pickle
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from torch import Tensor

from worthit.errors import WorthitError
from worthit.train.history import History
from worthit.train.journal import Diverged
from worthit.train.loop import train
from worthit.train.progress import Progress, Update

# Seconds between two looks at what the processes report.
LOOK_S = 0.1


def run_one(job: dict[str, Any], progress: Progress | None = None) -> tuple[History, Any]:
    """Build and train one model: its history and its tensors by name."""
    model = job["build"](job["seed"])
    options = {key: value for key, value in job.items() if key not in ("build", "how")}
    try:
        history = train(model, progress=progress, **options)
    except Diverged as error:
        history = error.history
    history.how = job["how"]
    return history, {name: tensor.detach() for name, tensor in model.state_dict().items()}


def unsendable(job: dict[str, Any]) -> str | None:
    """Why `job` cannot cross to a process; None where it can."""
    try:
        pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        return str(error).splitlines()[0]
    return None


def run_apart(
    jobs: Sequence[dict[str, Any]],
    n_processes: int,
    progress: Progress,
    finished: Callable[[int, History, dict[str, Tensor]], None],
) -> None:
    """Run every job in one of `n_processes`; `finished` is told of each as it ends."""
    has_server = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if has_server else "spawn")
    if has_server:
        context.set_forkserver_preload(["worthit.train.workers"])
    updates = context.Queue()
    pool = ProcessPoolExecutor(
        n_processes, mp_context=context, initializer=_start, initargs=(updates,)
    )
    try:
        waiting: dict[Future[Any], int] = {
            pool.submit(_run_in_worker, job): i for i, job in enumerate(jobs)
        }
        while waiting:
            done, _ = wait(waiting, timeout=LOOK_S, return_when="FIRST_COMPLETED")
            _drain(updates, progress)
            for future in done:
                history, state = future.result()
                finished(
                    waiting.pop(future),
                    history,
                    {name: torch.from_numpy(array) for name, array in state.items()},
                )
    except BrokenProcessPool as error:
        raise WorthitError(
            "a process of a run ended by itself, most likely killed for its memory; start fewer "
            "(n_workers), or the same runs again to continue them from their folders"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_updates: Any = None


def _start(updates: Any) -> None:
    global _updates
    _updates = updates
    torch.set_num_threads(1)


def _run_in_worker(job: dict[str, Any]) -> tuple[History, Any]:
    history, state = run_one(job, _updates.put)
    # Bytes of their own: handles of shared memory end with the process.
    return history, {name: tensor.cpu().numpy() for name, tensor in state.items()}


def _drain(updates: Any, progress: Callable[[Update], None]) -> None:
    while True:
        try:
            progress(updates.get_nowait())
        except queue.Empty:
            return
