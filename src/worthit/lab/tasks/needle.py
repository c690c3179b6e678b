"""A needle in a haystack: one fact in a long stream, asked for at the end.

Kamradt 2023, "Needle In A Haystack: pressure testing LLMs"; the synthetic form with keys and
distracting needles is Hsieh et al. 2024, "RULER: What's the Real Context Size of Your Long-Context
Language Models?", arXiv:2404.06654, section 3.

    f f f  !  k1 v1  f f f f  !  k2 v2  f f f  ?  k2
                                                  v2      target

The haystack is filler whose symbols are as unequal as words are (Zipf). Streams of several lengths
are mixed, each padded to the right up to `seq_len`; results are by length and by the depth of the
needle, `128@40%` for the fifth of 128 tokens that begins at 40 %.

What it tells apart: the context a model accepts (nominal) and the one it uses
(`effective_context`).
"""

from __future__ import annotations

import torch

from worthit.errors import InputError
from worthit.lab.tasks._generated import Drawn, Generated, at_least, distinct, ignored
from worthit.lab.tasks.scores import Score, Scores

PAD, NEEDLE, QUESTION = 0, 1, 2
FIRST_KEY = 3
DEPTHS = ("0%", "20%", "40%", "60%", "80%")
# Tokens of a needle: mark, key, value; and of the question: mark, key.
NEEDLE_TOKENS, QUESTION_TOKENS = 3, 2


def build(
    *,
    seq_len: int = 256,
    lengths: tuple[int, ...] = (),
    n_needles: int = 1,
    n_keys: int = 32,
    n_fillers: int = 64,
    seed: int = 0,
    n_held_out: int = 2000,
) -> Generated:
    """A needle in a haystack.

    Args:
        seq_len: of every row; the nominal context.
        lengths: of the streams; by default an eighth, a quarter, a half and all of `seq_len`,
            where that leaves room for five depths.
        n_needles: with one the question is only where; more are told apart by their keys.
        n_keys: different keys, and as many different values.
        n_fillers: symbols of the haystack.
        seed: draws the held-out rows.
        n_held_out: rows of each held-out split, over all lengths and depths.
    """
    least = NEEDLE_TOKENS * max(n_needles, len(DEPTHS)) + QUESTION_TOKENS
    usual = (seq_len // part for part in (8, 4, 2, 1))
    lengths = lengths or tuple(n for n in usual if n >= least) or (seq_len,)
    if min(lengths) < least or max(lengths) > seq_len:
        raise InputError(
            f"lengths: must lie between {least} (what {max(n_needles, len(DEPTHS))} needles and "
            f"the question take) and seq_len={seq_len}, got {', '.join(map(str, lengths))}; "
            "give others, or a longer seq_len"
        )
    at_least("n_needles", n_needles, 1)
    at_least("n_keys", n_keys, max(n_needles, 2))
    at_least("n_fillers", n_fillers, 1)
    first_value = FIRST_KEY + n_keys
    first_filler = first_value + n_keys
    frequencies = 1 / torch.arange(1, n_fillers + 1, dtype=torch.float64)
    steps = (frequencies.cumsum(0) / frequencies.sum())[:-1].float()

    def draw(generator: torch.Generator, rows: int) -> Drawn:
        which = torch.randint(len(lengths), (rows,), generator=generator)
        inputs = first_filler + torch.bucketize(
            torch.rand(rows, seq_len, generator=generator), steps, right=True
        )
        targets, depth = ignored(rows, seq_len), torch.empty_like(which)
        for i, length in enumerate(lengths):
            here = (which == i).nonzero().squeeze(1)
            n_blocks = (length - QUESTION_TOKENS) // NEEDLE_TOKENS
            blocks = distinct(generator, len(here), n_needles, n_blocks)
            keys = distinct(generator, len(here), n_needles, n_keys) + FIRST_KEY
            values = first_value + torch.randint(n_keys, keys.shape, generator=generator)
            at = here[:, None]
            for place, token in enumerate((torch.full_like(keys, NEEDLE), keys, values)):
                inputs[at, blocks * NEEDLE_TOKENS + place] = token
            # Their order is random, so that the first is any of them.
            inputs[here, length - 2], inputs[here, length - 1] = QUESTION, keys[:, 0]
            inputs[here, length:] = PAD
            targets[here, length - 1] = values[:, 0]
            depth[here] = blocks[:, 0] * len(DEPTHS) // n_blocks
        return Drawn(inputs, targets, inputs, which * len(DEPTHS) + depth)

    return Generated(
        "needle",
        first_filler + n_fillers,
        seq_len,
        draw,
        labels=[f"{length}@{depth}" for length in lengths for depth in DEPTHS],
        seed=seed,
        n_held_out=n_held_out,
    )


def by_length(scores: Scores) -> dict[int, Score]:
    """The scores of each length, over all depths, shortest first."""
    found: dict[int, Score] = {}
    for group, score in scores.by_group.items():
        length = int(group.partition("@")[0])
        found[length] = found.get(length, Score()) + score
    return dict(sorted(found.items()))


def effective_context(scores: Scores, threshold: float = 0.85) -> int:
    """The longest stream up to which at least `threshold` of the needles are found.

    Zero where even the shortest falls short. RULER's threshold is what Llama 2 7B reaches at 4096
    tokens, 85.6 %; ours is a round number near it.
    """
    reached = 0
    for length, score in by_length(scores).items():
        if score.exact_match < threshold:
            break
        reached = length
    return reached
