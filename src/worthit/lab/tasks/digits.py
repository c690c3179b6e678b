"""Digits: 8 x 8 images of handwritten digits, a pixel a token, and which digit it is.

The set that comes with scikit-learn (`sklearn.datasets.load_digits`): 1,797 images, the test part
of Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository. Nothing is downloaded: it is inside the package.

    p1 p2 ... p64  ?
                   3      target

Pixels have 17 levels, row by row. A tenth of each digit is validation and a fifth test, drawn by
`seed`. Who wrote which image is not recorded, so that a writer may stand on both sides.

What it tells apart: for images as sequences, what vision techniques are compared on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worthit.errors import InputError, MissingCapability
from worthit.lab.tasks._table import Table
from worthit.train.batch import IGNORE, Batch

N_LEVELS = 17
N_DIGITS = 10
N_PIXELS = 64
SHARES = {"test": 0.2, "validation": 0.1}


def build(*, n_levels: int = N_LEVELS, seed: int = 0) -> Table:
    """Digits as sequences of 65 tokens; reported by digit.

    Args:
        n_levels: of grey, 2 to 17; fewer are rounded from the 17 there are.
        seed: draws the splits.

    Raises:
        MissingCapability: scikit-learn is not installed.
    """
    if not 2 <= n_levels <= N_LEVELS:
        raise InputError(f"n_levels: must lie between 2 and {N_LEVELS}, got {n_levels}; give 17")
    pixels, digits = load_images()
    levels = (pixels * (n_levels - 1) / (N_LEVELS - 1)).round().long()
    ask, first_digit = n_levels, n_levels + 1
    inputs = torch.cat([levels, torch.full((len(levels), 1), ask)], dim=1)
    targets = torch.full_like(inputs, IGNORE)
    targets[:, -1] = digits + first_digit
    rows = {
        split: Batch(inputs[at], targets[at], tuple(f"digit {d}" for d in digits[at].tolist()))
        for split, at in split_rows(digits, seed).items()
    }
    return Table("digits", first_digit + N_DIGITS, rows)


def load_images() -> tuple[Tensor, Tensor]:
    """Pixels `(1797, 64)` from 0 to 16, and digits `(1797,)`."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingCapability(
            "the images of digits come with scikit-learn", "pip install 'worthit[lab]'"
        ) from None
    data = load_digits()
    return torch.from_numpy(data.data), torch.from_numpy(data.target).long()


def split_rows(digits: Tensor, seed: int) -> dict[str, Tensor]:
    """Rows of each split, every digit divided alike."""
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {"train": [], "validation": [], "test": []}
    for digit in range(N_DIGITS):
        rows = (digits == digit).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        for split, share in SHARES.items():
            n = round(share * int((digits == digit).sum()))
            parts[split].append(rows[:n])
            rows = rows[n:]
        parts["train"].append(rows)
    return {split: torch.cat(part).sort().values for split, part in parts.items()}
