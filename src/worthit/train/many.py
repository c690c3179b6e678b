"""Training several models of one shape: the runs of several seeds, side by side.

    trained = train_many(seeded(spec), data, recipe, seeds=range(5))

Every run has the weights, the batches and the updates that `train` would give it alone. How they
share the machine depends on what an update costs:

- Where it is small, calls cost more than arithmetic: the models are folded into one, and five
  small products become one batched product (`fold.py`).
- Where it is large, a core is busy with one model alone, and batching products gains nothing: each
  run gets a process of its own with one thread, and the system shares the cores out evenly.
- Short runs, and what cannot be sent to a process, go one after another.

A model that cannot be folded (dropless experts, recurrent mixers, mixture of depths, early exit)
counts as large. Every history says how its run was run, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worthit.errors import InputError, WorthitError
from worthit.train.batch import Data
from worthit.train.fold import CannotStack, fold
from worthit.train.history import History
from worthit.train.journal import Journal
from worthit.train.objective import AfterStep, Evaluate, Loss, device_of, next_token_loss
from worthit.train.progress import Progress, silent
from worthit.train.recipe import Recipe
from worthit.train.stack import Stack, train_stack
from worthit.train.workers import run_apart, run_one, unsendable

Build = Callable[[int], nn.Module]
# Up to this much arithmetic an update and model, folding models pays; the second where the choice
# is between that and processes that fill all cores. Measured, see docs/training.md.
SMALL_FLOPS, SMALL_FLOPS_BESIDE_PROCESSES = 1e9, 2e8
# Processes take seconds to start: runs that need less arithmetic than this together do not wait
# for them.
SHORT_FLOPS = 5e11
# A multiply-add for the pass forward and two for the pass back, of every parameter and token.
FLOPS_PER_PARAM_AND_TOKEN = 6
# Processes a core: more of them than cores end together, where as many as cores would leave some
# cores idle in the last round.
PROCESSES_PER_CORE = 4


@dataclass(frozen=True)
class Trained:
    """One finished run: its tensors by name, and its history.

    `history.failure` says why it stopped early, where it did; its tensors then mean nothing.
    """

    seed: int
    state: dict[str, Tensor]
    history: History

    def into(self, model: nn.Module) -> nn.Module:
        """`model` with the trained tensors, in `eval()` mode.

        Raises:
            WorthitError: the run diverged.
        """
        if self.history.failure is not None:
            raise WorthitError(f"there is no trained model: {self.history.failure}")
        model.load_state_dict(self.state)
        return model.eval()


def train_many(
    build: Build,
    data: Data,
    recipe: Recipe,
    seeds: Iterable[int],
    *,
    loss: Loss | None = None,
    evaluate: Evaluate | None = None,
    after_step: AfterStep | None = None,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    n_workers: int | None = None,
) -> list[Trained]:
    """Train one model a seed; in the order of `seeds`.

    A run that diverges ends there, says so in its history, and leaves the others alone.

    Args:
        build: from a seed to a fresh model; see `worthit.train.init.seeded`.
        loss, evaluate, after_step: as `train` takes them. To be run in processes of their own they
            must be functions or objects that a module holds by name.
        folder: run `s` is kept in `folder/seed-s`, and continued or left as finished from there.
        progress: called after every update, of whichever runs.
        n_workers: cores to fill with processes; by default as many as torch has threads. 1 stays
            in this process. A script that starts processes needs `if __name__ == "__main__":`.

    Raises:
        InputError: no seed, or one twice; or a folder holds another run.
    """
    seeds = list(seeds)
    if not seeds:
        raise InputError("seeds must name at least one run, got none; give 0, 1, 2, ...")
    if len(set(seeds)) != len(seeds):
        raise InputError(f"seeds must differ, got {seeds}; a run twice is no second sample")
    progress = progress or silent
    n_workers = n_workers or torch.get_num_threads()
    first = build(seeds[0])
    shared: dict[str, Any] = {"data": data, "recipe": recipe, "evaluate": evaluate}
    flops = _flops(first, data, recipe)
    # Processes are no help on another device, and a long time in coming.
    if flops * recipe.n_steps * len(seeds) < SHORT_FLOPS or device_of(first).type != "cpu":
        n_workers = 1
    small = SMALL_FLOPS if n_workers == 1 else SMALL_FLOPS_BESIDE_PROCESSES
    if len(seeds) == 1:
        why: str | None = "one run"
    elif flops > small:
        why = "an update keeps a core busy"
    else:
        why = _why_not_folded(first, recipe, loss, after_step)
    if why is None:
        models = [first, *(build(seed) for seed in seeds[1:])]
        return _together(models, seeds, folder, progress, **shared)
    jobs = [
        {
            "build": build,
            "seed": seed,
            "folder": _folder(folder, seed),
            "loss": loss,
            "after_step": after_step,
            **shared,
        }
        for seed in seeds
    ]
    return _apart(jobs, progress, n_workers, why)


def _why_not_folded(
    model: nn.Module, recipe: Recipe, loss: Loss | None, after_step: AfterStep | None
) -> str | None:
    """Why models like this one cannot be folded; None where they can."""
    if loss not in (None, next_token_loss):
        return "a loss of its own"
    if after_step is not None:
        return "something is done to each model after each update"
    if recipe.n_accumulate > 1:
        return "batches are run in parts"
    try:
        fold([model])
    except CannotStack as error:
        return str(error)
    return None


def _flops(model: nn.Module, data: Data, recipe: Recipe) -> float:
    """About how many floating-point operations an update of one model takes."""
    n_tokens = recipe.batch_size * data.seq_len
    return float(FLOPS_PER_PARAM_AND_TOKEN * sum(p.numel() for p in model.parameters()) * n_tokens)


def _together(
    models: Sequence[nn.Module],
    seeds: Sequence[int],
    folder: str | Path | None,
    progress: Progress,
    *,
    data: Data,
    recipe: Recipe,
    evaluate: Evaluate | None,
) -> list[Trained]:
    journals = [
        Journal(model, data, recipe, seed, _folder(folder, seed))
        for model, seed in zip(models, seeds, strict=True)
    ]
    # A kill between two runs' checkpoints leaves them at different updates.
    by_step: dict[int, list[int]] = {}
    for i, journal in enumerate(journals):
        by_step.setdefault(journal.step, []).append(i)
    for members in by_step.values():
        own = [journals[i] for i in members]
        for journal in own:
            others = [str(other.seed) for other in own if other is not journal]
            journal.history.how = f"batched with seeds {', '.join(others)}" if others else "alone"
        stack = Stack([models[i] for i in members], recipe, [seeds[i] for i in members])
        train_stack(stack, data, own, evaluate=evaluate, progress=progress)
    return [
        Trained(seed, _tensors(model), journal.history)
        for seed, model, journal in zip(seeds, models, journals, strict=True)
    ]


def _apart(
    jobs: Sequence[dict[str, Any]], progress: Progress, n_workers: int, why: str
) -> list[Trained]:
    n_processes = min(n_workers * PROCESSES_PER_CORE, len(jobs)) if n_workers > 1 else 1
    stays = unsendable(jobs[0]) if n_processes > 1 else None
    if stays is not None:
        n_processes = 1
    done: list[Trained | None] = [None] * len(jobs)

    def finished(i: int, history: History, state: dict[str, Tensor]) -> None:
        done[i] = Trained(jobs[i]["seed"], state, history)

    if n_processes > 1:
        how = f"in a process of its own: {why}"
    else:
        how = f"alone: {why}" + (f"; in this process: {stays}" if stays else "")
    for job in jobs:
        job["how"] = how
    if n_processes > 1:
        run_apart(jobs, n_processes, progress, finished)
    else:
        for i, job in enumerate(jobs):
            finished(i, *run_one(job, progress))
    return [one for one in done if one is not None]


def _folder(folder: str | Path | None, seed: int) -> Path | None:
    return None if folder is None else Path(folder) / f"seed-{seed}"


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}
