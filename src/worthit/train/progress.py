"""What a run says of itself while it runs; who draws it is another matter.

A `progress` is called after every update with an `Update`. Training draws nothing: the default
says nothing, a terminal or a log is the caller's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Update:
    """Where a run stands after `step` of `n_steps` updates.

    Attributes:
        loss: of the last batch; the mean over runs that advance together.
        tokens_per_s: of all runs that advance together, since this process began.
        eta_s: seconds that the rest will take at the same pace; None before there is a pace.
        seeds: which runs these are.
    """

    step: int
    n_steps: int
    loss: float
    lr: float
    tokens_per_s: float
    eta_s: float | None
    seeds: tuple[int, ...]


class Progress(Protocol):
    """Called after every update; slow drawing is its own to thin out."""

    def __call__(self, update: Update) -> None:
        """Show `update`, or do not."""
        ...


def silent(update: Update) -> None:
    """Show nothing."""


class Pace:
    """How fast updates go, from the first finished one on: the first also warms everything up."""

    def __init__(self, step: int, n_steps: int) -> None:
        self.n_steps = n_steps
        self._first_step, self._started = step, time.perf_counter()
        self._n_tokens = 0
        self._warm: tuple[int, float] | None = None

    def after(
        self, step: int, *, loss: float, lr: float, n_tokens: int, seeds: tuple[int, ...]
    ) -> Update:
        """The state after update `step`, which read `n_tokens`."""
        now = time.perf_counter()
        self._n_tokens += n_tokens
        eta = None
        if self._warm is None:
            self._warm = (step, now)
        elif step > self._warm[0]:
            per_step = (now - self._warm[1]) / (step - self._warm[0])
            eta = per_step * (self.n_steps - step)
        rate = self._n_tokens / max(now - self._started, 1e-9)
        return Update(step, self.n_steps, loss, lr, rate, eta, seeds)
