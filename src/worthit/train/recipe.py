"""How a model is trained, as one frozen value: everything but the model, the data and the seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, get_args

from worthit._record import record
from worthit.errors import InputError, unknown_name

OptimizerName = Literal["adamw", "muon", "shampoo", "soap"]
ScheduleName = Literal["constant", "cosine", "wsd"]
# Autocast does the second; the parameters and the optimizer stay in fp32 with either.
PrecisionName = Literal["fp32", "bf16"]


@record
class Recipe:
    """Steps, batches, optimizer and schedule of one training run; valid once built.

    Attributes:
        n_steps: updates of the parameters.
        batch_size: sequences an update sees, over all of its parts.
        lr: the highest learning rate, reached at the end of the warm-up.
        matrix_lr: that of the matrices inside the layers, for optimizers that have rules of their
            own for them; None is `lr`.
        optimizer: of the matrices inside the layers; AdamW steps everything else.
        betas: decay rates of AdamW's moments.
        weight_decay: decoupled, on the matrices alone: see `worthit.train.optimizers`.
        warmup_steps: updates over which the rate rises in a line.
        min_lr_ratio: the last rate as a share of `lr`.
        decay_share: the part of `n_steps` over which `wsd` falls, at the end.
        clip_norm: the longest gradient, as a norm over all parameters; None leaves it alone.
        n_accumulate: parts that a batch is run in, one after another; the update is the same.
        ema_decay: of the running average of the parameters that evaluations and the finished model
            use; None keeps none.
        log_every: updates from one line of the metrics to the next.
        eval_every: updates from one evaluation to the next; None evaluates at the end alone, 0
            never.
        checkpoint_every_s: seconds from one checkpoint to the next.
    """

    n_steps: int
    batch_size: int = 32
    lr: float = 1e-3
    matrix_lr: float | None = None
    optimizer: OptimizerName = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 0
    min_lr_ratio: float = 0.1
    decay_share: float = 0.2
    clip_norm: float | None = 1.0
    n_accumulate: int = 1
    ema_decay: float | None = None
    precision: PrecisionName = "fp32"
    log_every: int = 10
    eval_every: int | None = None
    checkpoint_every_s: float = 60.0

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("optimizer", self.optimizer, get_args(OptimizerName)),
            ("schedule", self.schedule, get_args(ScheduleName)),
            ("precision", self.precision, get_args(PrecisionName)),
        ):
            if name not in known:
                raise unknown_name(kind, name, known).within("recipe")
        problems = list(self._problems())
        if problems:
            raise InputError(*problems, context="recipe")

    def _problems(self) -> Iterator[str]:
        for name in ("n_steps", "batch_size", "n_accumulate", "log_every"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, got {getattr(self, name)}"
        for name in ("lr", "eps", "checkpoint_every_s"):
            if not 0 < getattr(self, name) < math.inf:
                yield f"{name} must be positive and finite, got {getattr(self, name)}"
        if self.matrix_lr is not None and not 0 < self.matrix_lr < math.inf:
            yield f"matrix_lr must be positive and finite, got {self.matrix_lr}; None is lr"
        if self.clip_norm is not None and not self.clip_norm > 0:
            yield f"clip_norm must be positive, got {self.clip_norm}; None does not clip"
        if not all(0 <= beta < 1 for beta in self.betas):
            yield f"betas must be at least 0 and below 1, got {self.betas}"
        if not self.weight_decay >= 0:
            yield f"weight_decay must not be negative, got {self.weight_decay}"
        for name in ("min_lr_ratio", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"{name} must be from 0 to 1, got {getattr(self, name)}"
        if not 0 <= self.warmup_steps <= self.n_steps:
            yield (
                f"warmup_steps must be from 0 to n_steps, got warmup_steps={self.warmup_steps} "
                f"and n_steps={self.n_steps}"
            )
        if self.n_accumulate > 0 and self.batch_size % self.n_accumulate:
            yield (
                f"n_accumulate must divide batch_size, got n_accumulate={self.n_accumulate} and "
                f"batch_size={self.batch_size}"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            yield f"ema_decay must be above 0 and below 1, got {self.ema_decay}; None keeps none"
        if self.eval_every is not None and self.eval_every < 0:
            yield f"eval_every must not be negative, got {self.eval_every}; None is the end alone"

    def is_logged(self, step: int) -> bool:
        """Whether the metrics get a line for update `step`, counted from 1."""
        return step == 1 or step % self.log_every == 0 or step == self.n_steps

    def is_evaluated(self, step: int) -> bool:
        """Whether the model is evaluated after update `step`, counted from 1."""
        if self.eval_every == 0:
            return False
        return step == self.n_steps or (self.eval_every is not None and step % self.eval_every == 0)
