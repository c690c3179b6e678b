"""How likely a model finds completions: the one thing that every preference loss reads.

    log pi(y | x) = sum_t log pi(y_t | x, y_<t),  over the tokens of the completion alone

Where the model can, its last feed-forward and its head run for these tokens only, and a prompt that
two completions share is read once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.align.sequences import Completions, Ids, rows_of
from worthit.align.together import together
from worthit.errors import InputError
from worthit.nn import Decoder
from worthit.train.batch import IGNORE, Batch
from worthit.train.objective import device_of

# Rows of a pass in which nothing is learned.
SCORED_ROWS = 32


@dataclass(frozen=True)
class Scored:
    """Completions under a policy and, where there is one, under its reference.

    Attributes:
        logps: `(n,)`, log pi(y | x), summed over tokens, in nats.
        lengths: `(n,)`, tokens of each completion, its ending included.
        reference: `(n,)`, the same of the reference, a constant; None without one.
    """

    logps: Tensor
    lengths: Tensor
    reference: Tensor | None = None

    @property
    def ratios(self) -> Tensor:
        """`(n,)`, log pi(y | x) - log pi_ref(y | x).

        Raises:
            InputError: there is no reference.
        """
        if self.reference is None:
            raise InputError(
                "this loss compares with a reference and the batch has none; score the data with "
                "worthit.align.reference first"
            )
        return self.logps - self.reference

    @property
    def means(self) -> Tensor:
        """`(n,)`, log-probability a token."""
        return self.logps / self.lengths

    def halves(self) -> tuple[Scored, Scored]:
        """Chosen and rejected, of rows in that order."""
        n = len(self.logps) // 2
        return self[:n], self[n:]

    def __getitem__(self, rows: slice | Tensor) -> Scored:
        reference = None if self.reference is None else self.reference[rows]
        return Scored(self.logps[rows], self.lengths[rows], reference)


def score(model: nn.Module, batch: Batch) -> Scored:
    """Every row of `batch` under `model`, with gradients where they are on."""
    logps, rows = token_logps(model, batch)
    n, width = batch.targets.shape
    of_row = rows // width
    summed = logps.new_zeros(n).index_add(0, of_row, logps)
    lengths = torch.bincount(of_row, minlength=n).to(logps.dtype)
    reference = batch.reference if isinstance(batch, Completions) else None
    return Scored(summed, lengths, reference)


def token_logps(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all targets, one after another, and where in the batch they stand.

    Returns:
        `(n targets,)` in fp32, and `(n targets,)` places in `batch.targets.flatten()`.
    """
    targets = batch.targets.flatten()
    rows = (targets != IGNORE).nonzero().squeeze(1)
    packed = together(model, batch, rows)
    if packed is None:
        logits = logits_at(model, batch.input_ids, rows)
    else:
        logits = model.logits_at(packed.input_ids, packed.rows, packed.tokens)
    return -functional.cross_entropy(logits.float(), targets[rows], reduction="none"), rows


def logits_at(model: nn.Module, input_ids: Tensor, rows: Tensor) -> Tensor:
    """Logits `(n rows, vocab_size)` of some tokens; any module that returns logits will do."""
    if isinstance(model, Decoder):
        return model.logits_at(input_ids, rows)
    found = model(input_ids)
    logits = found if isinstance(found, Tensor) else found.logits
    return logits.flatten(0, 1).index_select(0, rows)


@torch.no_grad()
def logps_of(model: nn.Module, sequences: Sequence[tuple[Ids, Ids]]) -> Tensor:
    """Log-probability of each completion after its prompt, `(n,)`, on the CPU.

    Rows of like length are passed together; the order is kept.
    """
    was_training = model.training
    model.eval()
    device = device_of(model)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]) + len(sequences[i][1]))
    found = torch.full((len(sequences),), float("nan"))
    for part in _chunks(order, SCORED_ROWS):
        batch = rows_of([sequences[i] for i in part]).to(device)
        found[part] = score(model, batch).logps.float().cpu()
    model.train(was_training)
    return found


def _chunks(items: Sequence[int], size: int) -> Iterable[list[int]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
