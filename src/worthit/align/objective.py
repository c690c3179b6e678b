"""What a method of learning from preferences is to the training loop.

A method is a frozen record of its settings with one pure function from log-probabilities to losses.
It takes pairs, or rated completions; the loop scores the rows and averages.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from worthit.align.scores import Scored, score
from worthit.align.sequences import Completions
from worthit.train.batch import Batch


@runtime_checkable
class OfPairs(Protocol):
    """A loss of pairs.

    Attributes:
        name: of the method.
        needs_reference: whether it reads log-probabilities of a reference.
    """

    name: ClassVar[str]
    needs_reference: ClassVar[bool]

    def of_pairs(self, chosen: Scored, rejected: Scored) -> Tensor:
        """The loss of each pair, `(n,)`."""
        ...

    def rewards(self, scored: Scored) -> Tensor:
        """The reward that the policy implies for each completion, `(n,)`, up to a constant."""
        ...


class PairLoss:
    """The mean of a method's loss over a batch of pairs, as `worthit.train` takes it."""

    def __init__(self, method: OfPairs) -> None:
        self.method = method

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar with gradients."""
        assert isinstance(batch, Completions)
        chosen, rejected = score(model, batch).halves()
        return self.method.of_pairs(chosen, rejected).mean()
