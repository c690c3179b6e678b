"""Copying: a few symbols, a long silence of constant length, then the symbols again.

Arjovsky, Shah & Bengio 2016, "Unitary Evolution Recurrent Neural Networks", arXiv:1511.06464,
section 4.1; after Hochreiter & Schmidhuber 1997.

    c a b  .  .  .  .  .  go go go
                          c  a  b      targets

The delay is the same in every row, so that a convolution that shifts by it solves the task: S4
does. Compare with selective-copying, where the delays depend on the content.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worthit.lab.tasks._generated import Drawn, Generated, at_least, ignored

NOISE, GO = 0, 1
FIRST_SYMBOL = 2


def build(
    *,
    n_content: int = 8,
    seq_len: int = 64,
    vocab_size: int = 16,
    seed: int = 0,
    n_held_out: int = 1024,
) -> Generated:
    """Plain copying.

    Args:
        n_content: symbols to remember.
        seq_len: content, silence and answer together.
        vocab_size: silence, go, and the symbols.
        seed: draws the held-out rows.
        n_held_out: rows of each held-out split; none shares its content with training.
    """
    check(n_content, seq_len, vocab_size)

    def draw(generator: torch.Generator, rows: int) -> Drawn:
        places = torch.arange(n_content).expand(rows, n_content)
        return copy_from(places, generator, seq_len, vocab_size)

    return Generated("copying", vocab_size, seq_len, draw, seed=seed, n_held_out=n_held_out)


def check(n_content: int, seq_len: int, vocab_size: int) -> None:
    """Raise unless content and answer fit, and there are symbols to choose from."""
    at_least("n_content", n_content, 1)
    at_least("seq_len", seq_len, 2 * n_content)
    at_least("vocab_size", vocab_size, FIRST_SYMBOL + 2)


def copy_from(places: Tensor, generator: torch.Generator, seq_len: int, vocab_size: int) -> Drawn:
    """Rows whose symbols stand at `places`, `(rows, n_content)` and rising, and nowhere else."""
    rows, n = places.shape
    content = torch.randint(FIRST_SYMBOL, vocab_size, (rows, n), generator=generator)
    inputs, targets = torch.full((rows, seq_len), NOISE), ignored(rows, seq_len)
    inputs.scatter_(1, places, content)
    inputs[:, -n:] = GO
    targets[:, -n:] = content
    return Drawn(inputs, targets, content)
