"""Selective copying: symbols scattered among noise, to be given back in order.

Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
arXiv:2312.00752, section 4.1.1; the task is the denoising one of Jing et al. 2019, "Gated
Orthogonal Recurrent Units: On Learning to Forget", arXiv:1706.02761.

    .  c  .  .  a  .  b  .  go go go
                            c  a  b      targets

What it tells apart: where a symbol stands is random, so that a fixed convolution (S4) cannot know
what to keep; a state that chooses by content (Mamba), or attention, can.
"""

from __future__ import annotations

import torch

from worthit.lab.tasks._generated import Drawn, Generated, distinct
from worthit.lab.tasks.copying import check, copy_from


def build(
    *,
    n_content: int = 8,
    seq_len: int = 64,
    vocab_size: int = 16,
    seed: int = 0,
    n_held_out: int = 1024,
) -> Generated:
    """Selective copying.

    Args:
        n_content: symbols to remember.
        seq_len: noise, content and answer together.
        vocab_size: noise, go, and the symbols.
        seed: draws the held-out rows.
        n_held_out: rows of each held-out split; none shares its content with training.
    """
    check(n_content, seq_len, vocab_size)

    def draw(generator: torch.Generator, rows: int) -> Drawn:
        places = distinct(generator, rows, n_content, seq_len - n_content).sort(dim=1).values
        return copy_from(places, generator, seq_len, vocab_size)

    return Generated(
        "selective-copying", vocab_size, seq_len, draw, seed=seed, n_held_out=n_held_out
    )
