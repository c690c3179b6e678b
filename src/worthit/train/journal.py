"""The record of one run: its history, its metrics on disk, its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from worthit.errors import InputError, WorthitError
from worthit.spec.codec import to_json
from worthit.train.batch import Data
from worthit.train.checkpoint import load_checkpoint, save_checkpoint
from worthit.train.history import History, Metrics
from worthit.train.recipe import Recipe
from worthit.train.schedule import lr_at

# What of a recipe changes no number of a run, so that it may differ when the run is continued.
_FREE = ("checkpoint_every_s",)
# Losses that a message about a failure shows.
_N_SHOWN = 5


class Diverged(WorthitError):
    """The loss or a gradient stopped being a number.

    Attributes:
        step: the update that would have followed, from 1.
        history: the run until then.
    """

    def __init__(self, message: str, *, step: int, history: History) -> None:
        super().__init__(message)
        self.step, self.history = step, history


class Journal:
    """Keeps one run's history, and what a folder needs to continue it.

    Args:
        folder: where metrics and checkpoints go; None keeps the history in memory alone.

    Raises:
        InputError: the folder holds another run.
    """

    def __init__(
        self, model: nn.Module, data: Data, recipe: Recipe, seed: int, folder: Path | None
    ) -> None:
        self.recipe, self.seed, self.folder = recipe, seed, folder
        self.about = _about(model, data, recipe, seed)
        self.saved = None if folder is None else load_checkpoint(folder)
        self.step = 0
        self.history = History(seed)
        if self.saved is not None:
            assert folder is not None
            _check_same(self.saved["about"], self.about, folder)
            self.step = self.saved["step"]
            self.history = History.from_json(_plain(self.saved["history"]))
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._is_open = self.step < recipe.n_steps
        self._metrics = Metrics(folder if self._is_open else None, self.step)
        self._losses: list[float] = []
        self._ticked = self._saved_at = time.perf_counter()

    def advance(self, *, loss: float, lr: float, grad_norm: float, n_tokens: int) -> None:
        """One more update, of a batch with `n_tokens`; a run that failed has no more to log."""
        self.step += 1
        history = self.history
        if history.failure is not None:
            return
        history.n_tokens += n_tokens
        self._tick()
        self._losses = [*self._losses[1 - _N_SHOWN :], loss]
        if self.recipe.is_logged(self.step):
            entry = {
                "step": self.step,
                "loss": loss,
                "lr": lr,
                "grad_norm": grad_norm,
                "tokens": history.n_tokens,
                "elapsed_s": round(history.wall_s, 3),
            }
            history.steps.append(entry)
            self._metrics.add("step", entry)

    def evaluated(self, scores: Mapping[str, float]) -> None:
        """What the evaluation after the last update said."""
        entry = {"step": self.step, **scores}
        self.history.evaluations.append(entry)
        self._metrics.add("eval", entry)

    @property
    def is_due(self) -> bool:
        """Whether it is time for a checkpoint: at the end, and now and then before it."""
        if self.folder is None:
            return False
        late = time.perf_counter() - self._saved_at >= self.recipe.checkpoint_every_s
        return late or self.step == self.recipe.n_steps

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint of the run with `state`; nothing without a folder."""
        if self.folder is None:
            return
        self._tick()
        about = {"about": self.about, "step": self.step, "history": self.history.to_json()}
        save_checkpoint(self.folder, {**about, **state})
        self._saved_at = time.perf_counter()

    def diverged(self, *, loss: float, grad_norm: float, first: Mapping[str, str]) -> Diverged:
        """The error for an update whose loss or gradient is no number: raise it.

        Args:
            first: what is not finite (`"parameter"`, `"gradient"`) and where it is first.
        """
        step, lr = self.step + 1, lr_at(self.recipe, self.step)
        what = f"the loss is {loss:g}" if loss != loss or abs(loss) == float("inf") else ""
        what = what or f"the loss is {loss:g} and the gradient's norm is {grad_norm:g}"
        seen = ", ".join(f"{value:.4g}" for value in self._losses) or "none yet"
        where = "; ".join(
            f"first {kind} that is not finite: {name}" for kind, name in first.items()
        )
        clip = self.recipe.clip_norm
        self.history.failure = (
            f"update {step} of {self.recipe.n_steps}: {what} at learning rate {lr:.3g}, seed "
            f"{self.seed}; losses before: {seen}; {where or 'every parameter is finite'}. Lower "
            f"lr={self.recipe.lr:g}, warm up for longer than "
            f"warmup_steps={self.recipe.warmup_steps}"
            + (", or clip: clip_norm is None" if clip is None else f", or clip below {clip:g}")
        )
        self._metrics.add(
            "diverged", {"step": step, "loss": loss, "grad_norm": grad_norm, "lr": lr}
        )
        return Diverged(self.history.failure, step=step, history=self.history)

    def _tick(self) -> None:
        now = time.perf_counter()
        self.history.wall_s += now - self._ticked
        self._ticked = now


def _about(model: nn.Module, data: Data, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What must be equal for a run to be the same run."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return {
        "recipe": to_json(recipe),
        "seed": seed,
        "data": [data.name, data.vocab_size, data.seq_len],
        "model": shapes,
    }


def _check_same(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    differences = []
    for part, is_by_key in (("recipe", True), ("seed", False), ("data", False), ("model", True)):
        before, after = _plain(saved[part]), _plain(now[part])
        if not is_by_key:
            if before != after:
                differences.append(f"{part}: {before} there, {after} here")
            continue
        for key in sorted({*before, *after} - {*_FREE}):
            old, new = before.get(key, "none"), after.get(key, "none")
            if old != new:
                differences.append(f"{part}.{key}: {old} there, {new} here")
    if differences:
        raise InputError(
            *differences[:8],
            "choose another folder, or remove this one to start over",
            context=f"{folder} holds another run",
        )


def _plain(node: Any) -> Any:
    """Lists for tuples, so that what was read equals what is about to be written."""
    if isinstance(node, Mapping):
        return {key: _plain(inner) for key, inner in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(inner) for inner in node]
    assert not isinstance(node, Tensor)
    return node
