"""Multi-query associative recall: pairs of key and value first, then keys whose values are asked.

Arora et al. 2023, "Zoology: Measuring and Improving Recall in Efficient Language Models",
arXiv:2312.04927, section 4 and appendix: MQAR.

    k1 v1 k2 v2 k3 v3  .  .  k2  .  .  .  k1  .  .  .  k3  .
                             v2           v1           v3     targets

Dots are one filler token. The gap before a question follows a power law, as recall in text does:
its slot j is drawn, without replacement, with weight j^(power - 1). Departures: values are drawn
independently, so that none can be had by elimination, and answers are not shown after their
questions.

What it tells apart: attention reads any pair back; a recurrent state holds as many pairs as its
size allows, and one that forgets or adds without looking holds fewer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worthit.errors import InputError
from worthit.lab.tasks._generated import Drawn, Generated, at_least, distinct, ignored

FILLER = 0


def build(
    *,
    n_pairs: int | Sequence[int] = 8,
    seq_len: int = 64,
    vocab_size: int = 256,
    power: float = 0.01,
    seed: int = 0,
    n_held_out: int = 1024,
) -> Generated:
    """Multi-query associative recall.

    Args:
        n_pairs: pairs a sequence, each asked once; several values are mixed evenly, and results
            reported by them.
        seq_len: at least four tokens a pair.
        vocab_size: the filler, then half keys, half values.
        power: of the gaps; 1 makes them uniform, towards 0 they gather near the pairs.
        seed: draws the held-out rows.
        n_held_out: rows of each held-out split.
    """
    counts = (n_pairs,) if isinstance(n_pairs, int) else tuple(n_pairs)
    n_keys = (vocab_size - 1) // 2
    if not counts or min(counts) < 1:
        raise InputError(f"n_pairs: must be positive, got {n_pairs}; give at least 1")
    at_least("seq_len", seq_len, 4 * max(counts))
    at_least("vocab_size", vocab_size, 2 * max(counts) + 1)
    if power <= 0:
        raise InputError(f"power: must be positive, got {power}; give 0.01, or 1 for uniform gaps")

    def draw(generator: torch.Generator, rows: int) -> Drawn:
        which = torch.randint(len(counts), (rows,), generator=generator)
        inputs, targets = torch.full((rows, seq_len), FILLER), ignored(rows, seq_len)
        for i, n in enumerate(counts):
            here = (which == i).nonzero().squeeze(1)
            keys = distinct(generator, len(here), n, n_keys) + 1
            values = torch.randint(n_keys, (len(here), n), generator=generator) + n_keys + 1
            asked = 2 * n + 2 * _slots(generator, len(here), n, (seq_len - 2 * n) // 2, power)
            at = here[:, None]
            inputs[at, torch.arange(0, 2 * n, 2)] = keys
            inputs[at, torch.arange(1, 2 * n, 2)] = values
            inputs[at, asked] = keys
            targets[at, asked] = values
        return Drawn(inputs, targets, inputs, which)

    labels = [f"{n} pairs" for n in counts]
    return Generated(
        "associative-recall",
        vocab_size,
        seq_len,
        draw,
        labels=labels,
        seed=seed,
        n_held_out=n_held_out,
    )


def _slots(generator: torch.Generator, rows: int, n: int, n_slots: int, power: float) -> Tensor:
    """`(rows, n)` distinct slots, drawn one after the other with weight (slot + 1)^(power - 1).

    As a race: the slot that finishes first wins, its time exponential with that rate (Efraimidis &
    Spirakis 2006).
    """
    times = torch.empty(rows, n_slots).exponential_(generator=generator)
    rates = torch.arange(1, n_slots + 1, dtype=torch.float32) ** (power - 1)
    return (times / rates).topk(n, largest=False).indices
