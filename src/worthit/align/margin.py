"""How a model ranks the answers of a set before it learns from them: a fact of the data.

A model that ranks most pairs rightly has little to learn from them; one that finds the chosen
answers very unlikely should be fine-tuned on them first. Chen et al. 2024, "Preference Learning
Algorithms Do Not Learn Preference Rankings", arXiv:2405.19534, call the share of pairs ranked
rightly the ranking accuracy; theirs compares whole answers or tokens, as both do here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from worthit.align.scores import logps_of
from worthit.align.text import encode
from worthit.decode.tokenizer import load_tokenizer
from worthit.errors import InputError
from worthit.nn.load import checkpoint_path, load_model
from worthit.spec.preference_facts import ModelMargin, Share
from worthit.spec.preference_stats import chance_of_larger, share_of
from worthit.spec.preferences import Preferences


def margin_of(model: str | Path, preferences: Preferences, *, n: int) -> ModelMargin:
    """Run the weights that `model` names on `n` examples, evenly spread over the set.

    Raises:
        InputError: no weights there, examples that say nothing about answers, or none that fit
            into the model's context.
    """
    if preferences.shape == "prompt":
        raise InputError(
            "prompts alone have no answers that a model could rank; leave --margin out"
        )
    if n < 1:
        raise InputError(f"--margin: must be at least 1 example, got {n}")
    path = checkpoint_path(model)
    tokenizer = load_tokenizer(path)
    loaded = load_model(path)
    step = max(len(preferences) // n, 1)
    some = replace(preferences, examples=preferences.examples[::step][:n])
    found = encode(some, tokenizer, max_length=loaded.spec.context_len)
    if found.pairs:
        better = [(pair.prompt, pair.chosen) for pair in found.pairs]
        worse = [(pair.prompt, pair.rejected) for pair in found.pairs]
        return _paired(path.name, _scored(loaded, better), _scored(loaded, worse))
    if found.rated:
        scored = _scored(loaded, [(one.prompt, one.completion) for one in found.rated])
        return _rated(path.name, scored, [one.is_good for one in found.rated])
    _, means = _scored(loaded, [(one.prompt, one.completion) for one in found.shown])
    chosen = float(means.mean())
    return ModelMargin(
        model=path.name, n=len(means), ranked=None, ranked_summed=None, margin=None, chosen=chosen
    )


Logps = tuple[torch.Tensor, torch.Tensor]  # of whole answers, and a token


def _scored(
    model: torch.nn.Module, sequences: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> Logps:
    summed = logps_of(model, sequences).double()
    return summed, summed / torch.tensor([len(answer) for _, answer in sequences])


def _paired(name: str, better: Logps, worse: Logps) -> ModelMargin:
    n = len(better[0])
    whole, token = ((b - w) for b, w in zip(better, worse, strict=True))
    return ModelMargin(
        model=name,
        n=n,
        ranked=share_of(int((token > 0).sum()), n),
        ranked_summed=share_of(int((whole > 0).sum()), n),
        margin=float(token.mean()),
        chosen=float(better[1].mean()),
    )


def _rated(name: str, scored: Logps, is_good: Sequence[bool]) -> ModelMargin:
    good = torch.tensor(is_good)
    whole, token = scored
    ranks: list[Share | None] = [chance_of_larger(x.numpy(), good.numpy()) for x in (token, whole)]
    return ModelMargin(
        model=name,
        n=len(is_good),
        ranked=ranks[0],
        ranked_summed=ranks[1],
        margin=None if ranks[0] is None else float(token[good].mean() - token[~good].mean()),
        chosen=float(token[good].mean()) if good.any() else float(token.mean()),
    )
