"""A finite task: every example encoded once, each in exactly one split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from worthit.errors import unknown_name
from worthit.train.batch import IGNORE, Batch

# Rows of a held-out batch: enough to keep a core busy, few enough for activations to stay small.
HELD_OUT_ROWS = 128


class Table:
    """`Data` over rows that are all there from the start.

    Args:
        name: the task.
        vocab_size: tokens are below it.
        rows: one batch with every row of a split; `train` is what training draws from, with
            replacement, and may be read as a split too: what a model remembers of it.
    """

    def __init__(self, name: str, vocab_size: int, rows: Mapping[str, Batch]) -> None:
        self.name = name
        self.vocab_size = vocab_size
        self.seq_len = rows["train"].input_ids.shape[1]
        self.rows = dict(rows)

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        """`size` rows of the training split, drawn with replacement."""
        train = self.rows["train"]
        rows = torch.randint(len(train.input_ids), (size,), generator=generator)
        groups = tuple(train.groups[row] for row in rows.tolist()) if train.groups else ()
        return Batch(train.input_ids[rows], train.targets[rows], groups)

    def held_out(self, split: str = "test") -> Iterator[Batch]:
        """Every row of a split, in order."""
        if split not in self.rows:
            raise unknown_name("split", split, self.rows)
        rows = self.rows[split]
        for start in range(0, len(rows.input_ids), HELD_OUT_ROWS):
            part = slice(start, start + HELD_OUT_ROWS)
            yield Batch(rows.input_ids[part], rows.targets[part], rows.groups[part])


def next_tokens(
    questions: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], seq_len: int, pad: int
) -> tuple[Tensor, Tensor]:
    """Question and answer in a row, padded on the right: `(inputs, targets)`, each `(rows, seq)`.

    Only the tokens of the answer are targets. The last of them is never an input, so that a
    question and an answer of `seq_len + 1` tokens still fit.
    """
    inputs = torch.full((len(questions), seq_len), pad)
    targets = torch.full((len(questions), seq_len), IGNORE)
    for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        tokens = torch.tensor([*question, *answer])
        n = len(tokens) - 1
        inputs[row, :n] = tokens[:-1]
        targets[row, len(question) - 1 : n] = tokens[len(question) :]
    return inputs, targets
