"""Prompts and completions as token ids, and how they stand in a batch.

Rows are padded on the right, which a causal model never sees. A batch of pairs has the chosen
completions first and the rejected ones below, in the same order; a batch of rated completions may
have below them the mismatched ones that KTO's estimate reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from worthit._record import record
from worthit.errors import InputError
from worthit.train.batch import IGNORE, Batch

Ids = tuple[int, ...]


@record
class Pair:
    """One prompt, the completion that was preferred, and the other; with their endings."""

    prompt: Ids
    chosen: Ids
    rejected: Ids


@record
class Rated:
    """One prompt and one completion, which somebody found good or not."""

    prompt: Ids
    completion: Ids
    is_good: bool


@record
class Demonstration:
    """One prompt and what should be said to it."""

    prompt: Ids
    completion: Ids


@dataclass(frozen=True)
class Completions(Batch):
    """Rows of completions: `targets` are theirs alone, so that prompts are not scored.

    Attributes:
        reference: `(batch,)`, each completion's log-probability under the reference; None where
            the method has none.
        is_good: `(n,)` booleans of rated rows, the first `n` of the batch; None for pairs.
    """

    reference: Tensor | None = None
    is_good: Tensor | None = None

    @property
    def n_blocks(self) -> int:
        """How many blocks of rows stand below each other: two for pairs."""
        return 2 if self.is_good is None else len(self.input_ids) // len(self.is_good)

    @property
    def weight(self) -> int:
        """How many pairs or rated completions the loss is the mean of."""
        return len(self.input_ids) // self.n_blocks

    def to(self, device: torch.device) -> Self:
        """This batch on `device`."""
        there = super().to(device)
        return replace(
            there,
            reference=None if self.reference is None else self.reference.to(device),
            is_good=None if self.is_good is None else self.is_good.to(device),
        )

    def part(self, i: int, n: int) -> Self:
        """The `i`-th of `n` parts; what belongs together stays together."""
        each = self.weight // n
        rows = torch.cat(
            [
                torch.arange(i * each, (i + 1) * each) + block * self.weight
                for block in range(self.n_blocks)
            ]
        ).to(self.input_ids.device)
        return replace(
            self,
            input_ids=self.input_ids[rows],
            targets=self.targets[rows],
            groups=(),
            reference=None if self.reference is None else self.reference[rows],
            is_good=None if self.is_good is None else self.is_good[rows[:each]],
        )


def rows_of(
    sequences: Sequence[tuple[Ids, Ids]],
    *,
    reference: Tensor | None = None,
    is_good: Tensor | None = None,
    has_last: bool = False,
) -> Completions:
    """Prompts and completions as one batch, as wide as the longest needs.

    The last token of a row is a target and no input: its logits would be nobody's.

    Args:
        has_last: keep it all the same, for what reads whole completions (a reward model).

    Raises:
        InputError: no prompt or no completion somewhere: nothing can be scored there.
    """
    problems = [
        f"row {i}: needs a prompt and a completion of at least one token each, got {len(p)} and "
        f"{len(c)}"
        for i, (p, c) in enumerate(sequences)
        if not p or not c
    ]
    if problems:
        raise InputError(*problems[:8])
    width = max(len(p) + len(c) for p, c in sequences) - (not has_last)
    inputs = torch.zeros(len(sequences), width, dtype=torch.long)
    targets = torch.full_like(inputs, IGNORE)
    for i, (prompt, completion) in enumerate(sequences):
        ids = [*prompt, *completion]
        given = ids if has_last else ids[:-1]
        inputs[i, : len(given)] = torch.tensor(given)
        targets[i, len(prompt) - 1 : len(ids) - 1] = torch.tensor(completion)
    return Completions(inputs, targets, reference=reference, is_good=is_good)


def pair_rows(
    pairs: Sequence[Pair], reference: Tensor | None = None, *, has_last: bool = False
) -> Completions:
    """`2n` rows: the chosen completions, then the rejected ones.

    Args:
        reference: `(n, 2)`, of chosen and rejected.
        has_last: see `rows_of`.
    """
    rows = [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs]
    found = None if reference is None else reference.T.flatten()
    return rows_of(rows, reference=found, has_last=has_last)
