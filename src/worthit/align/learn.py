"""One loop for every method that learns from data that are there: score, train, look at both ends.

    learned = learn_pairs(model, Pairs("prefs", train, validation, vocab_size=...), DPO(), recipe,
                          seed=0, folder="runs/dpo")

The loop itself is `worthit.train`: its recipes, its checkpoints, its resumption bit for bit. What
stands here is what preferences add: the reference before the first update, and what became of the
chosen and the rejected completions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worthit.align.data import Demonstrations, Pairs, Ratings, WholePairs
from worthit.align.displacement import Displacement, compared, displacement
from worthit.align.kto import KTO, RatedLoss
from worthit.align.objective import OfPairs, PairLoss
from worthit.align.reference import Cache
from worthit.align.reward import RewardLoss, RewardModel
from worthit.align.scores import Scored, score
from worthit.errors import InputError
from worthit.train import History, Progress, Recipe, mean_loss, next_token_loss, train
from worthit.train.batch import Data
from worthit.train.objective import Evaluate, Loss, device_of

# What preference learning usually takes: short, flat, without decay, and clipped.
DEFAULTS: dict[str, Any] = {
    "schedule": "cosine",
    "weight_decay": 0.0,
    "betas": (0.9, 0.999),
    "clip_norm": 1.0,
    "log_every": 1,
}
OnScored = Callable[[int], None]


@dataclass(frozen=True)
class Learned:
    """What a run did.

    Attributes:
        history: of the training.
        before, after: held-out pairs at both ends; None where none were held out.
        scores: of the last evaluation, by name.
    """

    history: History
    before: Displacement | None = None
    after: Displacement | None = None
    scores: dict[str, float] = field(default_factory=dict)


def recipe(n_steps: int, *, batch_size: int, lr: float, **changed: Any) -> Recipe:
    """A `Recipe` with the defaults of preference learning."""
    warmup = {"warmup_steps": n_steps // 10}
    return Recipe(
        n_steps=n_steps, batch_size=batch_size, lr=lr, **{**DEFAULTS, **warmup, **changed}
    )


def learn_pairs(
    model: nn.Module,
    data: Pairs,
    method: OfPairs,
    recipe: Recipe,
    *,
    seed: int,
    folder: Path | None = None,
    progress: Progress | None = None,
    on_scored: OnScored | None = None,
) -> Learned:
    """Train `model` in place on pairs; it is its own reference as it comes in.

    Args:
        folder: keeps metrics, checkpoints and the reference's scores; the same call goes on.
        on_scored: called with how many completions the reference scored just now.

    Raises:
        InputError: weights in bf16 that the steps would not move, or a folder of another run.
        Diverged: the loss is no number.
    """
    check_moves(model)
    data.refer(model, Cache(folder, on_scored))
    before = _at_reference(data)

    def evaluate(model: nn.Module) -> dict[str, float]:
        found = displacement(model, data.held_out())
        return {} if found is None else found.scores()

    learned = _learned(model, data, recipe, PairLoss(method), evaluate, seed, folder, progress)
    return replace(learned, before=before, after=displacement(model, data.held_out()))


def learn_ratings(
    model: nn.Module,
    data: Ratings,
    method: KTO,
    recipe: Recipe,
    *,
    seed: int,
    folder: Path | None = None,
    progress: Progress | None = None,
    on_scored: OnScored | None = None,
) -> Learned:
    """Train `model` in place on rated completions; otherwise as `learn_pairs`."""
    check_moves(model)
    data.refer(model, Cache(folder, on_scored))

    def evaluate(model: nn.Module) -> dict[str, float]:
        scores: dict[str, float] = rating_scores(model, data)
        return scores

    return _learned(model, data, recipe, RatedLoss(method), evaluate, seed, folder, progress)


def learn_demonstrations(
    model: nn.Module,
    data: Demonstrations,
    recipe: Recipe,
    *,
    seed: int,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Supervised fine-tuning: the mean loss of the completions' tokens."""
    check_moves(model)

    def evaluate(model: nn.Module) -> dict[str, float]:
        held_out = list(data.held_out())
        return {"loss": mean_loss(model, held_out)} if held_out else {}

    return _learned(model, data, recipe, next_token_loss, evaluate, seed, folder, progress)


def learn_rewards(
    model: RewardModel,
    data: WholePairs,
    recipe: Recipe,
    *,
    seed: int,
    centring: float = 0.01,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Train a reward model in place."""
    check_moves(model)

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, RewardModel)
        margins, offsets = [], []
        for batch in data.held_out():
            chosen, rejected = model.rewards(batch.to(device_of(model))).chunk(2)
            margins.append(chosen - rejected)
            offsets.append((chosen + rejected) / 2)
        if not margins:
            return {}
        margin = torch.cat(margins)
        return {
            "accuracy": float((margin > 0).float().mean()),
            "margin": float(margin.mean()),
            "offset": float(torch.cat(offsets).mean()),
        }

    return _learned(model, data, recipe, RewardLoss(centring), evaluate, seed, folder, progress)


def _learned(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    loss: Loss,
    evaluate: Evaluate,
    seed: int,
    folder: Path | None,
    progress: Progress | None,
) -> Learned:
    """What all of them end in."""
    history = train(
        model,
        data,
        recipe,
        seed=seed,
        folder=folder,
        loss=loss,
        evaluate=evaluate,
        progress=progress,
    )
    return Learned(history, scores=history.scores)


@torch.no_grad()
def rating_scores(model: nn.Module, data: Ratings) -> dict[str, float]:
    """Held-out ratings under `model`: mean log-ratios of both kinds, and how well they part.

    `ranked` is the share of all pairs of a good and a bad completion in which the good one has
    gained more: the area under the curve.
    """
    ratios, is_good = [], []
    for batch in data.held_out():
        assert batch.is_good is not None
        n = len(batch.is_good)
        ratios.append(score(model, batch.to(device_of(model)))[:n].ratios.cpu())
        is_good.append(batch.is_good)
    if not ratios:
        return {}
    all_ratios, good = torch.cat(ratios), torch.cat(is_good)
    best, worst = all_ratios[good], all_ratios[~good]
    found = {}
    if len(best):
        found["good_change"] = float(best.mean())
    if len(worst):
        found["bad_change"] = float(worst.mean())
    if len(best) and len(worst):
        apart = best[:, None] - worst[None]
        found["ranked"] = float(((apart > 0).float() + 0.5 * (apart == 0).float()).mean())
    return found


def check_moves(model: nn.Module) -> None:
    """Refuse weights that a step of preference learning would not move.

    bf16 keeps eight bits: a weight of 0.02 has its neighbour 1e-4 away, and AdamW's step is about
    the learning rate, 1e-6. It is rounded away, every time, and the loss looks merely flat.

    Raises:
        InputError: some parameter that learns has fewer than 32 bits.
    """
    narrow = [
        f"{name} ({str(p.dtype).removeprefix('torch.')})"
        for name, p in model.named_parameters()
        if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)
    ]
    if narrow:
        raise InputError(
            f"{narrow[0]}{f' and {len(narrow) - 1} more' if len(narrow) > 1 else ''}: small steps "
            "are rounded away in 16 bits and nothing is learned; load the model in fp32 (products "
            "may still be in bf16: precision='bf16'), or train adapters"
        )


def _at_reference(data: Pairs) -> Displacement | None:
    """Held-out pairs before the first update: the reference's own scores."""
    found = data.reference.get("validation")
    if found is None:
        return None
    pairs = data.examples["validation"]
    lengths = torch.tensor([[len(p.chosen), len(p.rejected)] for p in pairs], dtype=found.dtype)
    chosen, rejected = (Scored(found[:, i], lengths[:, i], found[:, i]) for i in (0, 1))
    return compared(chosen, rejected)
