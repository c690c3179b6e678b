"""Parity: is the number of ones so far odd?

The regular language that separates architectures by what their state can track: Hahn 2020,
"Theoretical Limitations of Self-Attention in Neural Sequence Models", arXiv:1906.06755; Merrill,
Petty & Sabharwal 2024, "The Illusion of State in State-Space Models", arXiv:2404.08819; Grazzi et
al. 2025, "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues", arXiv:2411.12537.

    1 0 1 1 0
    1 1 0 1 1      targets, or only the last of them

What it tells apart: one bit of state is enough, yet attention of constant depth does it poorly at
lengths it was not trained on, and a linear recurrence needs a negative eigenvalue.
"""

from __future__ import annotations

import torch

from worthit.errors import unknown_name
from worthit.lab.tasks._generated import Drawn, Generated, at_least, ignored

SCORED = ("all", "last")


def build(
    *, seq_len: int = 32, scored: str = "all", seed: int = 0, n_held_out: int = 1024
) -> Generated:
    """Parity of bits.

    Args:
        seq_len: bits a sequence.
        scored: `all` asks after each bit; `last` only at the end, which is harder to learn.
        seed: draws the held-out rows.
        n_held_out: rows of each held-out split. Whole sequences are held out; their beginnings are
            as common in training as anywhere.
    """
    at_least("seq_len", seq_len, 2)
    if scored not in SCORED:
        raise unknown_name("setting of scored", scored, SCORED)

    def draw(generator: torch.Generator, rows: int) -> Drawn:
        bits = torch.randint(2, (rows, seq_len), generator=generator)
        odd = bits.cumsum(1) % 2
        targets = odd if scored == "all" else ignored(rows, seq_len)
        targets[:, -1] = odd[:, -1]
        return Drawn(bits, targets, bits)

    return Generated("parity", 2, seq_len, draw, seed=seed, n_held_out=n_held_out)
