"""A running average of the parameters, which is what gets evaluated and handed over.

Polyak & Juditsky 1992 average a run's iterates; with exponential weights the average forgets the
start. Early on the decay is (1 + t) / (10 + t), so that the first values do not linger.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """The average of `parameters`, changed in place by their optimizer; nothing for None."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float | None) -> None:
        self.decay = decay
        self._parameters = {} if decay is None else dict(parameters)
        self.values = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after update `step`, counted from 0."""
        if self.decay is None:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), list(self._parameters.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The average in the parameters' place, inside the block."""
        trained = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.settle()
        try:
            yield
        finally:
            self._put(trained)

    def settle(self) -> None:
        """Put the average in the parameters' place."""
        self._put(self.values)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Continue from `values`."""
        for name, value in values.items():
            self.values[name].copy_(value)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
