"""Arithmetic modulo a prime: a table of which only part is ever shown.

Power et al. 2022, "Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets",
arXiv:2201.02177, appendix A.1.

    a + b =
          c      target

What it tells apart: memorising the shown part from finding the rule. `train` is a split too, so
that both accuracies can be followed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worthit.errors import InputError, unknown_name
from worthit.lab.tasks._generated import at_least
from worthit.lab.tasks._table import Table
from worthit.train.batch import IGNORE, Batch

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "squares": lambda a, b: a * a + b * b,
}
COMMUTATIVE = ("add", "multiply", "squares")
SEQ_LEN = 4


def build(
    *,
    p: int = 97,
    operation: str = "add",
    train_fraction: float = 0.5,
    keeps_pairs: bool = True,
    seed: int = 0,
) -> Table:
    """Modular arithmetic.

    Args:
        p: the modulus; the table has p x p cells.
        operation: `add`, `subtract`, `multiply`, or `squares` (a^2 + b^2).
        train_fraction: of the table that is trained on; the rest is half validation, half test.
        keeps_pairs: a + b and b + a, which a model may read as one, are on the same side of a
            split. Power et al. split them apart: False is their table.
        seed: draws the splits.
    """
    if operation not in OPERATIONS:
        raise unknown_name("operation", operation, OPERATIONS)
    at_least("p", p, 3)
    if not 0 < train_fraction < 1:
        raise InputError(
            f"train_fraction: must lie between 0 and 1, got {train_fraction}; give 0.5, say"
        )
    a, b = torch.cartesian_prod(torch.arange(p), torch.arange(p)).unbind(1)
    is_same = keeps_pairs and operation in COMMUTATIVE
    # One number for each cell, or for both of a pair.
    cell = torch.minimum(a, b) * p + torch.maximum(a, b) if is_same else a * p + b
    cells = cell.unique()
    shuffled = cells[torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))]
    n_train = round(train_fraction * len(cells))
    n_validation = (len(cells) - n_train) // 2
    if min(n_train, n_validation) < 1:
        raise InputError(
            f"train_fraction: {train_fraction} of {len(cells)} cells leaves a split empty; "
            "give one nearer to 0.5, or a larger p"
        )
    sizes = [n_train, n_validation, len(cells) - n_train - n_validation]
    names = ("train", "validation", "test")
    parts = {
        name: torch.isin(cell, part)
        for name, part in zip(names, shuffled.split(sizes), strict=True)
    }
    plus, equals = p, p + 1
    inputs = torch.stack([a, torch.full_like(a, plus), b, torch.full_like(a, equals)], dim=1)
    targets = torch.full_like(inputs, IGNORE)
    targets[:, -1] = OPERATIONS[operation](a, b) % p
    rows = {name: Batch(inputs[part], targets[part]) for name, part in parts.items()}
    return Table("modular-arithmetic", p + 2, rows)
