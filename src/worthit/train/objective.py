"""What is minimised, and how it is measured: the mean loss of the tokens that have a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.errors import InputError
from worthit.nn import Decoder
from worthit.train.batch import IGNORE, Batch

# The mean over a batch's targets, and whatever is added to it: balance, distillation, ...
Loss = Callable[[nn.Module, Batch], Tensor]
# Scores of a model by name, on whatever the task holds out.
Evaluate = Callable[[nn.Module], Mapping[str, float]]
# Called with the model after each update of its parameters.
AfterStep = Callable[[nn.Module], None]


# Up to this share of tokens with a target, the others are left out where the model can do so.
FEW = 0.75


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats of the targets of `batch`, in fp32.

    Where few tokens have a target, what only the others need is not computed.
    """
    targets = batch.targets.flatten()
    rows = (targets != IGNORE).nonzero().squeeze(1)
    if isinstance(model, Decoder) and len(rows) <= FEW * len(targets):
        logits = model.logits_at(batch.input_ids, rows)
        return functional.cross_entropy(logits.float(), targets[rows])
    logits = model(batch.input_ids).flatten(0, -2)
    return functional.cross_entropy(logits.float(), targets, ignore_index=IGNORE)


def n_targets(batch: Batch) -> int:
    """How many things the loss of `batch` is the mean of."""
    return batch.weight


def parts(batch: Batch, n: int) -> Iterator[tuple[Batch, float]]:
    """`batch` in `n` parts of equally many rows, each with its share of all the targets.

    Parts hold unequally many targets, so the mean over the batch is the mean of the parts' means
    weighted by these shares. A part without targets is left out.
    """
    if n == 1:
        yield batch, 1.0
        return
    total = n_targets(batch)
    for i in range(n):
        part = batch.part(i, n)
        if count := n_targets(part):
            yield part, count / total


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[Batch], loss: Loss = next_token_loss) -> float:
    """The loss of `model`, as it stands, over all targets of `batches`: every token counts alike.

    Raises:
        InputError: there is no target.
    """
    device = device_of(model)
    total, count = 0.0, 0
    for batch in batches:
        if n := n_targets(batch):
            total += float(loss(model, to_device(batch, device))) * n
            count += n
    if count == 0:
        raise InputError("the batches have no targets; nothing can be measured on them")
    return total / count


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter of `model` is."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """`batch` on `device`; itself where it is there."""
    if batch.input_ids.device == device:
        return batch
    return batch.to(device)
