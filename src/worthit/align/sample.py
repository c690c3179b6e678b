"""Completions drawn from a model, ending included: what self-play and rewards are about."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from worthit.align.sequences import Ids
from worthit.decode.generate import tokens_of
from worthit.decode.sampling import Sampling
from worthit.nn import Decoder

# Prompts of a pass: of like length, so that little is padding.
ROWS = 64


def sample(
    model: Decoder,
    prompts: Sequence[Ids],
    *,
    max_tokens: int,
    stop_ids: Sequence[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[Ids]:
    """One completion of each prompt, in the order of the prompts.

    The stop token that ended a completion is its last; one that the limit cut off has none. A
    prompt that stands there twice gets two draws.
    """
    was_training = model.training
    model.eval()
    sampling = Sampling(temperature=temperature, top_p=top_p)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[Ids] = [()] * len(prompts)
    for start in range(0, len(order), ROWS):
        part = order[start : start + ROWS]
        said: list[list[int]] = [[] for _ in part]
        is_open = [True] * len(part)
        steps = tokens_of(
            model,
            [prompts[i] for i in part],
            max_tokens=max_tokens,
            sampling=sampling,
            seed=seed + start,
        )
        for chosen in steps:
            for row, token in enumerate(chosen):
                if is_open[row]:
                    said[row].append(token)
                    is_open[row] = token not in stop_ids
            if not any(is_open):
                break
        for i, tokens in zip(part, said, strict=True):
            found[i] = tuple(tokens)
    model.train(was_training)
    return found


def drawn_seed(generator: torch.Generator) -> int:
    """A seed from a stream, so that what is sampled continues with it."""
    return int(torch.randint(2**62, (1,), generator=generator))
