"""Sorting: numbers in any order, then the same numbers rising.

    3 1 2 1  =  1 1 2
             1  1 2 3      targets

What it tells apart: each step looks for the smallest number not yet written, over the whole input:
easy for attention, a matter of state size for a recurrence. A list is held out in all its orders.
"""

from __future__ import annotations

import torch

from worthit.errors import InputError
from worthit.lab.tasks._generated import Drawn, Generated, at_least, ignored

EQUALS = 0


def build(
    *, seq_len: int = 32, n_values: int = 31, seed: int = 0, n_held_out: int = 1024
) -> Generated:
    """Sorting.

    Args:
        seq_len: half of it is the list, half the answer; even.
        n_values: numbers are one of so many; a list may repeat them.
        seed: draws the held-out rows.
        n_held_out: rows of each held-out split; no list of them is in training in any order.
    """
    at_least("seq_len", seq_len, 4)
    at_least("n_values", n_values, 2)
    if seq_len % 2:
        raise InputError(f"seq_len: must be even, got {seq_len}; give {seq_len + 1}")
    n = seq_len // 2

    def draw(generator: torch.Generator, rows: int) -> Drawn:
        numbers = 1 + torch.randint(n_values, (rows, n), generator=generator)
        ordered = numbers.sort(dim=1).values
        inputs, targets = torch.full((rows, seq_len), EQUALS), ignored(rows, seq_len)
        inputs[:, :n] = numbers
        inputs[:, n + 1 :] = ordered[:, :-1]
        targets[:, n:] = ordered
        return Drawn(inputs, targets, ordered)

    return Generated("sorting", n_values + 1, seq_len, draw, seed=seed, n_held_out=n_held_out)
