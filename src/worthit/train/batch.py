"""What a model is trained and tested on: batches of tokens with their targets.

A task (see `worthit.lab.tasks`) is anything with the attributes and methods of `Data`; training
and evaluation know nothing else about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

# The target of a position that is not learned or scored; what `cross_entropy` ignores by default.
IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """Sequences and what should follow each of their tokens.

    Attributes:
        input_ids: `(batch, seq)`, int64.
        targets: `(batch, seq)`, int64: the token that should follow, so already shifted; `IGNORE`
            where there is nothing to learn.
        groups: one label a row where results are reported by group (tense and person, length).
    """

    input_ids: Tensor
    targets: Tensor
    groups: tuple[str, ...] = ()

    @property
    def weight(self) -> int:
        """How many things the loss of this batch is the mean of: its targets."""
        return int((self.targets != IGNORE).sum())

    def to(self, device: torch.device) -> Self:
        """This batch on `device`."""
        return replace(self, input_ids=self.input_ids.to(device), targets=self.targets.to(device))

    def part(self, i: int, n: int) -> Self:
        """The `i`-th of `n` parts with equally many rows."""
        each = len(self.input_ids) // n
        rows = slice(i * each, (i + 1) * each)
        return replace(
            self,
            input_ids=self.input_ids[rows],
            targets=self.targets[rows],
            groups=self.groups[rows],
        )


class Data(Protocol):
    """A task: a stream of training batches and fixed batches held out from it."""

    name: str
    vocab_size: int
    seq_len: int

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        """A training batch of `size` sequences; the same generator state gives the same batch."""
        ...

    def held_out(self, split: str = "test") -> Iterator[Batch]:
        """Every batch of a split that shares nothing with training.

        `validation` is what choices are made on (learning rates, early stops), `test` what is
        reported. The same at every call.
        """
        ...


@runtime_checkable
class Remembering(Protocol):
    """A task whose next batch depends on more than the generator: kept with a run's checkpoints."""

    def memory(self) -> Mapping[str, Any]:
        """What it depends on: mappings and lists of tensors and JSON values."""
        ...

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Take `memory` back."""
        ...
