"""Training one model, from the first update to the last, or from where it was left.

    history = train(model, data, recipe, seed=0, folder="runs/a")

An update: draw a batch, run it in parts (`n_accumulate`), clip the gradient's norm (Pascanu et al.
2012, arXiv:1211.5063, algorithm 1), step. What a run gives is a function of the model's weights,
the data, the recipe and the seed; the seconds are not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn

from worthit.train.average import Average
from worthit.train.batch import Batch, Data, Remembering
from worthit.train.history import History
from worthit.train.interrupt import interrupts_wait
from worthit.train.journal import Diverged, Journal
from worthit.train.objective import (
    AfterStep,
    Evaluate,
    Loss,
    device_of,
    mean_loss,
    next_token_loss,
    parts,
    to_device,
)
from worthit.train.optimizers import make_optimizer, set_lr
from worthit.train.progress import Pace, Progress, silent
from worthit.train.recipe import Recipe
from worthit.train.schedule import lr_at, lr_ratio

__all__ = ["Diverged", "train"]


def train(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    seed: int,
    folder: str | Path | None = None,
    loss: Loss | None = None,
    evaluate: Evaluate | None = None,
    after_step: AfterStep | None = None,
    progress: Progress | None = None,
) -> History:
    """Train `model` in place, and say how it went.

    Args:
        model: with the weights it starts from; with `ema_decay` it ends as the running average.
        seed: of the batches' order and of everything random in the model's passes.
        folder: takes metrics and checkpoints. A run that is in it already is continued, bit for
            bit as if it had never stopped; a finished one is only read.
        loss: mean over a batch's targets; `next_token_loss` by default.
        evaluate: scores of the model in `eval()` mode; by default `loss` over the validation split.
        after_step: called with the model after every update.
        progress: called after every update.

    Raises:
        Diverged: the loss or a gradient is no number.
        InputError: the folder holds another run, or only damaged checkpoints.
        KeyboardInterrupt: on Ctrl-C, once the update is done and saved.
    """
    loss = loss or next_token_loss
    progress = progress or silent
    journal = Journal(model, data, recipe, seed, None if folder is None else Path(folder))
    run = _Run(model, recipe, seed)
    with torch.random.fork_rng(devices=[]), interrupts_wait() as is_interrupted:
        torch.manual_seed(seed_for("passes", seed))
        if journal.saved is not None:
            run.restore(journal.saved)
            if isinstance(data, Remembering):
                data.remember(journal.saved["data"])
        pace = Pace(journal.step, recipe.n_steps)
        model.train()
        while journal.step < recipe.n_steps:
            batch = data.batch(run.generator, recipe.batch_size)
            value, norm = run.update(batch, loss, journal)
            if after_step is not None:
                after_step(model)
            n_tokens = batch.input_ids.numel()
            lr = lr_at(recipe, journal.step)
            journal.advance(loss=value, lr=lr, grad_norm=norm, n_tokens=n_tokens)
            if recipe.is_evaluated(journal.step):
                journal.evaluated(run.scores(data, loss, evaluate))
            progress(pace.after(journal.step, loss=value, lr=lr, n_tokens=n_tokens, seeds=(seed,)))
            is_stopping = is_interrupted()
            if journal.is_due or is_stopping:
                memory = data.memory() if isinstance(data, Remembering) else {}
                journal.save({**run.state(), "data": memory})
            if is_stopping:
                raise KeyboardInterrupt
    run.average.settle()
    model.eval()
    return journal.history


class _Run:
    """What changes while a model is trained."""

    def __init__(self, model: nn.Module, recipe: Recipe, seed: int) -> None:
        self.model, self.recipe = model, recipe
        self.device = device_of(model)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        self.optimizer = make_optimizer(model, recipe)
        self.average = Average(self.parameters, recipe.ema_decay)
        self.generator = torch.Generator().manual_seed(seed_for("data", seed))

    def update(self, batch: Batch, loss: Loss, journal: Journal) -> tuple[float, float]:
        """One step of the optimizer; the loss before it and the gradient's norm before clipping."""
        value = 0.0
        for part, share in parts(to_device(batch, self.device), self.recipe.n_accumulate):
            with precision(self.recipe, self.device):
                part_loss = loss(self.model, part)
            (part_loss if share == 1.0 else part_loss * share).backward()
            value += float(part_loss.detach()) * share
        norm = float(nn.utils.get_total_norm([p.grad for p in self._learning()]))
        if not (math.isfinite(value) and math.isfinite(norm)):
            found = first_not_finite(self.parameters)
            raise journal.diverged(loss=value, grad_norm=norm, first=found)
        clip = self.recipe.clip_norm
        if clip is not None:
            nn.utils.clip_grads_with_norm_(self._learning(), clip, torch.tensor(norm))
        set_lr(self.optimizer, lr_ratio(self.recipe, journal.step))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(journal.step)
        return value, norm

    def _learning(self) -> list[nn.Parameter]:
        return [p for p in self.parameters.values() if p.grad is not None]

    def scores(self, data: Data, loss: Loss, evaluate: Evaluate | None) -> Mapping[str, float]:
        """An evaluation of the model as it would be handed over now."""
        self.model.eval()
        with self.average.applied(), torch.no_grad(), precision(self.recipe, self.device):
            scores = (
                {"loss": mean_loss(self.model, data.held_out("validation"), loss)}
                if evaluate is None
                else evaluate(self.model)
            )
        self.model.train()
        return scores

    def state(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "model": {n: t for n, t in self.model.state_dict().items() if n not in self.frozen},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.values,
            "generator": self.generator.get_state(),
            "passes": torch.get_rng_state(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take `state` back."""
        # What is frozen is what the model was given with, and in no checkpoint.
        self.model.load_state_dict(saved["model"], strict=not self.frozen)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average.load(saved["average"])
        self.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["passes"])


def seed_for(use: str, seed: int) -> int:
    """A seed of its own for each use of `seed`, so that no two draw the same numbers."""
    return int.from_bytes(hashlib.sha256(f"{use} {seed}".encode()).digest()[:7], "big")


def precision(recipe: Recipe, device: torch.device) -> AbstractContextManager[None]:
    """Products in the recipe's format, inside the block."""
    is_mixed = recipe.precision == "bf16"
    context: AbstractContextManager[None] = torch.autocast(
        device.type, torch.bfloat16, enabled=is_mixed
    )
    return context


def first_not_finite(
    parameters: Mapping[str, Tensor], i: int | EllipsisType = ...
) -> dict[str, str]:
    """The first parameter and the first gradient, in the order of the model, with NaN or inf.

    Args:
        i: looks at this entry of stacked parameters alone.
    """
    found = {}
    for name, parameter in parameters.items():
        for kind, tensor in (("parameter", parameter), ("gradient", parameter.grad)):
            if kind not in found and tensor is not None and not bool(tensor[i].isfinite().all()):
                found[kind] = name
    return found
