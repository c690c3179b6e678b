"""Preferences as `worthit.train` takes them: random batches, and a part held out.

References are scored once, before training, and travel with the examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from worthit.align.kto import partners
from worthit.align.reference import Cache
from worthit.align.sequences import (
    Completions,
    Demonstration,
    Ids,
    Pair,
    Rated,
    pair_rows,
    rows_of,
)
from worthit.errors import InputError, unknown_name

Example = TypeVar("Example", Pair, Rated, Demonstration)
HELD_OUT_ROWS = 16
SPLITS = ("train", "validation")


class Examples(Generic[Example]):
    """Examples in two splits; what batches of them are is a subclass's.

    Args:
        name: of the data, for the run's record.
        train, validation: the examples of each split; the second may be empty.
        vocab_size: of the model.
    """

    def __init__(
        self,
        name: str,
        train: Sequence[Example],
        validation: Sequence[Example],
        *,
        vocab_size: int,
    ) -> None:
        if not train:
            raise InputError(f"{name}: has no examples to learn from")
        self.name = name
        self.vocab_size = vocab_size
        self.examples: dict[str, list[Example]] = {
            "train": list(train),
            "validation": list(validation),
        }
        self.seq_len = max(len(p) + len(c) for split in SPLITS for p, c in self.sequences(split))
        # `(n, ...)` log-probabilities by split, once `refer` has scored them.
        self.reference: dict[str, Tensor] = {}

    def sequences(self, split: str) -> list[tuple[Ids, Ids]]:
        """Everything of a split that a reference would score, flat."""
        raise NotImplementedError

    def rows(self, split: str, places: Sequence[int]) -> Completions:
        """A batch of some examples."""
        raise NotImplementedError

    def refer(self, model: nn.Module, cache: Cache | None = None) -> None:
        """Take `model`, as it is now, as the reference of all examples."""
        cache = cache or Cache(None)
        for split in SPLITS:
            sequences = self.sequences(split)
            if sequences:
                scored = cache.logps(model, split, sequences)
                self.reference[split] = scored.view(len(self.examples[split]), -1)

    def batch(self, generator: torch.Generator, size: int) -> Completions:
        """`size` training examples, drawn without replacement where there are as many."""
        n = len(self.examples["train"])
        places = torch.randperm(n, generator=generator)[:size].tolist()
        while len(places) < size:
            places += torch.randperm(n, generator=generator)[: size - len(places)].tolist()
        return self.rows("train", places)

    def held_out(self, split: str = "validation") -> Iterator[Completions]:
        """A split in order."""
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        n = len(self.examples[split])
        for start in range(0, n, HELD_OUT_ROWS):
            yield self.rows(split, range(start, min(start + HELD_OUT_ROWS, n)))

    def _reference(self, split: str, places: Sequence[int]) -> Tensor | None:
        found = self.reference.get(split)
        return None if found is None else found[list(places)]


class Pairs(Examples[Pair]):
    """Pairs; a batch is `2n` rows.

    Args:
        has_last: whether rows keep their last token: for reward models.
    """

    has_last = False

    def sequences(self, split: str) -> list[tuple[Ids, Ids]]:
        """Chosen and rejected of each pair in turn."""
        return [
            (pair.prompt, completion)
            for pair in self.examples[split]
            for completion in (pair.chosen, pair.rejected)
        ]

    def rows(self, split: str, places: Sequence[int]) -> Completions:
        """Chosen above rejected."""
        pairs = [self.examples[split][i] for i in places]
        return pair_rows(pairs, self._reference(split, places), has_last=self.has_last)


class WholePairs(Pairs):
    """Pairs whose rows keep their last tokens, which a reward model reads."""

    has_last = True


class Ratings(Examples[Rated]):
    """Rated completions; a batch is `2n` rows, the mismatched ones below."""

    def sequences(self, split: str) -> list[tuple[Ids, Ids]]:
        """Each completion after its own prompt, and another's after it."""
        rated = self.examples[split]
        if not rated:
            return []
        return [
            (r.prompt, completion)
            for r, other in zip(rated, self._partners(split), strict=True)
            for completion in (r.completion, other)
        ]

    def rows(self, split: str, places: Sequence[int]) -> Completions:
        """Rated above mismatched."""
        rated = [self.examples[split][i] for i in places]
        others = [self._partners(split)[i] for i in places]
        reference = self._reference(split, places)
        return rows_of(
            [(r.prompt, r.completion) for r in rated]
            + [(r.prompt, other) for r, other in zip(rated, others, strict=True)],
            reference=None if reference is None else reference.T.flatten(),
            is_good=torch.tensor([r.is_good for r in rated]),
        )

    def _partners(self, split: str) -> list[Ids]:
        if not hasattr(self, "_found"):
            self._found: dict[str, list[Ids]] = {}
        if split not in self._found:
            self._found[split] = partners(self.examples[split])
        return self._found[split]


class Demonstrations(Examples[Demonstration]):
    """Completions to imitate; a batch is `n` rows, each target counting alike."""

    def sequences(self, split: str) -> list[tuple[Ids, Ids]]:
        """Every completion."""
        return [(d.prompt, d.completion) for d in self.examples[split]]

    def rows(self, split: str, places: Sequence[int]) -> Completions:
        """Rows of completions; `weight` counts rows."""
        chosen = [self.examples[split][i] for i in places]
        return rows_of([(d.prompt, d.completion) for d in chosen])


def split_off(
    examples: Sequence[Example], share: float, *, seed: int = 0
) -> tuple[list[Example], list[Example]]:
    """Training and validation, by prompt: no prompt is in both."""
    prompts = sorted({e.prompt for e in examples})
    n = round(share * len(prompts))
    if n == 0 or len(prompts) < 2:
        return list(examples), []
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    held = {prompts[i] for i in order[: min(n, len(prompts) - 1)]}
    return (
        [e for e in examples if e.prompt not in held],
        [e for e in examples if e.prompt in held],
    )
