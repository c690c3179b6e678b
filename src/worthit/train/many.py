"""Training several models of one shape at once: seeds side by side in batched parameters.

    trained = train_many(seeded(spec), data, recipe, seeds=range(5))

Every run has the weights, the batches and the updates that `train` would give it alone. Small
models leave a core idle between small products; with their parameters stacked, the products of
five models are one batched product. Where a model's passes depend on its data in a way that cannot
be batched (dropless experts, mixture of depths, early exit), the runs go to one process a core
instead, and their histories say so.
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
from worthit.train.history import History
from worthit.train.journal import Journal
from worthit.train.objective import AfterStep, Evaluate, Loss, next_token_loss
from worthit.train.progress import Progress, silent
from worthit.train.recipe import Recipe
from worthit.train.stack import CannotStack, Stack, check_stackable, train_stack
from worthit.train.workers import run_apart, run_one, unsendable

Build = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Trained:
    """One finished run: its tensors by name, and its history.

    `history.failure` says why it stopped early, where it did; its tensors are then those it had.
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
        n_workers: processes at a time where runs cannot advance together; by default as many as
            torch has threads. 1 stays in this process.

    Raises:
        InputError: no seed, or one twice; or a folder holds another run.
    """
    seeds = list(seeds)
    if not seeds:
        raise InputError("seeds must name at least one run, got none; give 0, 1, 2, ...")
    if len(set(seeds)) != len(seeds):
        raise InputError(f"seeds must differ, got {seeds}; a run twice is no second sample")
    progress = progress or silent
    options: dict[str, Any] = {"data": data, "recipe": recipe, "loss": loss, "evaluate": evaluate}
    why = None
    if len(seeds) == 1:
        why = "one run alone"
    elif after_step is not None:
        why = "after_step takes one model at a time"
    else:
        models = [build(seed) for seed in seeds]
        try:
            check_stackable(models[:2], data, recipe, seeds[:2], loss or next_token_loss)
        except CannotStack as error:
            why = str(error)
    if why is None:
        done = _together(models, seeds, folder, progress, **options)
    else:
        jobs = [
            {
                "build": build,
                "seed": seed,
                "folder": _folder(folder, seed),
                "after_step": after_step,
                **options,
            }
            for seed in seeds
        ]
        done = _apart(jobs, progress, n_workers or torch.get_num_threads(), why)
    return [done[seed] for seed in seeds]


def _together(
    models: Sequence[nn.Module],
    seeds: Sequence[int],
    folder: str | Path | None,
    progress: Progress,
    *,
    data: Data,
    recipe: Recipe,
    loss: Loss | None,
    evaluate: Evaluate | None,
) -> dict[int, Trained]:
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
        stack = Stack(
            [models[i] for i in members],
            recipe,
            [seeds[i] for i in members],
            loss or next_token_loss,
        )
        train_stack(stack, data, own, evaluate=evaluate, progress=progress)
    return {
        seed: Trained(seed, _tensors(model), journal.history)
        for seed, model, journal in zip(seeds, models, journals, strict=True)
    }


def _apart(
    jobs: Sequence[dict[str, Any]], progress: Progress, n_workers: int, why: str
) -> dict[int, Trained]:
    n_workers = min(n_workers, len(jobs))
    done: dict[int, Trained] = {}

    def finished(i: int, history: History, state: dict[str, Tensor]) -> None:
        seed = jobs[i]["seed"]
        done[seed] = Trained(seed, state, history)

    if n_workers > 1 and (stays := unsendable(jobs[0])):
        why, n_workers = f"{why}; one after another: {stays}", 1
    for job in jobs:
        job["how"] = why
    if n_workers > 1:
        run_apart(jobs, n_workers, progress, finished)
    else:
        for i, job in enumerate(jobs):
            finished(i, *run_one(job, progress))
    return done


def _folder(folder: str | Path | None, seed: int) -> Path | None:
    return None if folder is None else Path(folder) / f"seed-{seed}"


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}
