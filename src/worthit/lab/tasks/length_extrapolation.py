"""Length extrapolation: train at one length, test at that length and at several times of it.

Press, Smith & Lewis 2022, "Train Short, Test Long: Attention with Linear Biases Enables Input
Length Extrapolation", arXiv:2108.12409, section 2.

Any task with a `seq_len` can be stretched. What grows with it:

    text                another task's whole context: the same bytes are scored at every length
    induction-heads     the distance back to the trigger
    copying             the silence between content and answer; selective-copying: the noise
    associative-recall  the gaps between pairs and questions, at the same number of pairs
    parity, sorting     the problem itself

The model needs positions up to the longest test.
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from typing import Any

import torch

from worthit.errors import InputError, unknown_name
from worthit.lab.tasks import builder, task
from worthit.train.batch import Batch, Data

NAME = "length-extrapolation"


class Stretched:
    """`Data` of one task, with a split `test-4x` for each factor: its test rows at 4 x `seq_len`.

    `test` is `test-1x`.
    """

    def __init__(self, base: Data, longer: dict[str, Data]) -> None:
        self.name = NAME
        self.vocab_size = base.vocab_size
        self.seq_len = base.seq_len
        self._base = base
        self._longer = longer

    @property
    def splits(self) -> tuple[str, ...]:
        """What `held_out` takes."""
        return ("train", "validation", "test", *self._longer)

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        """A training batch, at the training length."""
        return self._base.batch(generator, size)

    def held_out(self, split: str = "test") -> Iterator[Batch]:
        """The rows of a split; those of `test-4x` are four times as long."""
        if split not in self.splits:
            raise unknown_name("split", split, self.splits)
        longer = self._longer.get(split)
        return self._base.held_out(split) if longer is None else longer.held_out("test")


def build(
    *,
    of: str = "induction-heads",
    seq_len: int = 64,
    factors: tuple[int, ...] = (1, 2, 4, 8),
    **options: Any,
) -> Stretched:
    """Length extrapolation.

    Args:
        of: the task to stretch.
        seq_len: of training.
        factors: the tests' lengths over `seq_len`.
        options: of that task.

    Raises:
        InputError: the task has no `seq_len`, or a factor is below 1.
    """
    of = of.replace("_", "-")
    build_one = builder(of)
    if of == NAME or build_one is None or "seq_len" not in signature(build_one).parameters:
        raise InputError(
            f"of: must be a task whose seq_len can be chosen, got {of!r}; text, say, or parity"
        )
    if not factors or min(factors) < 1:
        raise InputError(f"factors: must be at least 1, got {factors}; give 1, 2, 4, say")
    if of == "text":
        # The same tokens are scored at every length: what precedes them is all that differs.
        options = {"reach": seq_len * max(factors), "n_scored": seq_len // 2, **options}
    longer = {f"test-{k}x": task(of, seq_len=k * seq_len, **options) for k in factors}
    return Stretched(task(of, seq_len=seq_len, **options), longer)
