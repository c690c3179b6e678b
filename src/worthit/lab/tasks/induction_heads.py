"""Induction: after a trigger that was seen once before, say what followed it then.

Olsson et al. 2022, "In-context Learning and Induction Heads", arXiv:2209.11895; in the form of Gu &
Dao 2023, arXiv:2312.00752, section 4.1.2, with one trigger and one answer a sequence.

    d b a  #  c  d a b c a  #
                            c      target

What it tells apart: two layers of attention solve it exactly at any length their positions allow;
a recurrence must keep one symbol over the whole gap. Longer sequences than in training show who
learned the rule (`length-extrapolation`).
"""

from __future__ import annotations

import torch

from worthit.lab.tasks._generated import Drawn, Generated, at_least, ignored

TRIGGER = 0
# Results by how far back the trigger was, as a share of the sequence.
GROUPS = ("0-25% back", "25-50% back", "50-75% back", "75-100% back")


def build(
    *, seq_len: int = 64, vocab_size: int = 16, seed: int = 0, n_held_out: int = 1024
) -> Generated:
    """Induction heads.

    Args:
        seq_len: the second trigger is its last token, and the only one with a target.
        vocab_size: the trigger and the other symbols.
        seed: draws the held-out rows.
        n_held_out: rows of each held-out split.
    """
    at_least("seq_len", seq_len, 4)
    at_least("vocab_size", vocab_size, 3)

    def draw(generator: torch.Generator, rows: int) -> Drawn:
        inputs = torch.randint(TRIGGER + 1, vocab_size, (rows, seq_len), generator=generator)
        first = torch.randint(seq_len - 2, (rows, 1), generator=generator)
        targets = ignored(rows, seq_len)
        targets[:, -1:] = inputs.gather(1, first + 1)
        inputs.scatter_(1, first, TRIGGER)
        inputs[:, -1] = TRIGGER
        back = seq_len - 1 - first.squeeze(1)  # from 2 to seq_len - 1
        return Drawn(inputs, targets, inputs, back * len(GROUPS) // seq_len)

    return Generated(
        "induction-heads",
        vocab_size,
        seq_len,
        draw,
        labels=GROUPS,
        seed=seed,
        n_held_out=n_held_out,
    )
