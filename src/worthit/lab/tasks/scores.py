"""How well a model does on held-out batches: loss, tokens right, rows right; by group too.

All are running sums over every scored token, so that batches of any sizes add up exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from worthit.errors import InputError
from worthit.train.batch import IGNORE, Batch


@dataclass(frozen=True)
class Score:
    """Sums over rows, and what they say. A row counts once it has a target.

    Attributes:
        n_rows: sequences with at least one target.
        n_tokens: targets.
        loss_sum: cross entropy in nats, summed over targets.
        n_right_tokens: targets that were the likeliest token.
        n_right_rows: rows whose every target was: what greedy decoding would have got right.
    """

    n_rows: int = 0
    n_tokens: int = 0
    loss_sum: float = 0.0
    n_right_tokens: int = 0
    n_right_rows: int = 0

    @property
    def loss(self) -> float:
        """Nats a token; NaN where nothing was scored."""
        return self.loss_sum / self.n_tokens if self.n_tokens else math.nan

    @property
    def token_accuracy(self) -> float:
        """Share of targets that were the likeliest token."""
        return self.n_right_tokens / self.n_tokens if self.n_tokens else math.nan

    @property
    def exact_match(self) -> float:
        """Share of rows in which every target was."""
        return self.n_right_rows / self.n_rows if self.n_rows else math.nan

    def __add__(self, other: Score) -> Score:
        return Score(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Score)))


@dataclass(frozen=True)
class Scores:
    """The score of all rows, and of each group of them."""

    overall: Score = Score()
    by_group: Mapping[str, Score] = field(default_factory=dict)

    def __add__(self, other: Scores) -> Scores:
        groups = dict(self.by_group)
        for name, score in other.by_group.items():
            groups[name] = groups.get(name, Score()) + score
        return Scores(self.overall + other.overall, groups)

    def to_record(self) -> dict[str, Any]:
        """For JSON: the three measures of all rows and of each group, with what they count."""
        return {
            **_record(self.overall),
            "by_group": {name: _record(score) for name, score in sorted(self.by_group.items())},
        }


def evaluate(model: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> Scores:
    """Score `model` on `batches`: a split's, whole.

    Args:
        model: from ids `(batch, seq)` to logits `(batch, seq, vocab)`. A module is scored in
            evaluation mode and left as it was; ids go to the device of its parameters.
        batches: such as `data.held_out("test")`.
    """
    module: Any = model if isinstance(model, torch.nn.Module) else None
    parameter = None if module is None else next(module.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    was_training = module is not None and module.training
    if module is not None:
        module.eval()
    total = Scores()
    try:
        with torch.inference_mode():
            for batch in batches:
                total = total + score(model(batch.input_ids.to(device)), batch)
    finally:
        if module is not None:
            module.train(was_training)
    return total


def score(logits: Tensor, batch: Batch) -> Scores:
    """The scores of one batch.

    Args:
        logits: `(batch, seq, vocab)`, on any device.

    Raises:
        InputError: their shape is not that of the batch.
    """
    if logits.ndim != 3 or logits.shape[:2] != batch.targets.shape:
        raise InputError(
            f"logits: must be (batch, seq, vocab) for targets {tuple(batch.targets.shape)}, "
            f"got {tuple(logits.shape)}"
        )
    targets = batch.targets.to(logits.device)
    is_scored = targets != IGNORE
    n_tokens = is_scored.sum(1)
    wanted, scored = targets[is_scored], logits[is_scored].float()
    losses = torch.zeros(targets.shape, dtype=torch.float64, device=logits.device)
    losses[is_scored] = functional.cross_entropy(scored, wanted, reduction="none").double()
    is_right = torch.zeros_like(is_scored)
    is_right[is_scored] = scored.argmax(-1) == wanted
    n_right = is_right.sum(1)
    rows = [
        Score(int(n > 0), n, loss, right, int(n > 0 and n == right))
        for n, loss, right in zip(
            n_tokens.tolist(), losses.sum(1).tolist(), n_right.tolist(), strict=True
        )
    ]
    overall, groups = Score(), dict[str, Score]()
    for row in rows:
        overall = overall + row
    for name, row in zip(batch.groups, rows if batch.groups else (), strict=True):
        groups[name] = groups.get(name, Score()) + row
    return Scores(overall, groups)


def _record(score: Score) -> dict[str, Any]:
    return {
        "loss": score.loss,
        "token_accuracy": score.token_accuracy,
        "exact_match": score.exact_match,
        "n_rows": score.n_rows,
        "n_tokens": score.n_tokens,
    }
