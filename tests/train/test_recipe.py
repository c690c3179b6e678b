"""Recipes are valid once built, and schedules are those of the reference schedulers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from worthit.errors import InputError, UnknownName
from worthit.spec.codec import from_json, to_json
from worthit.train.recipe import Recipe
from worthit.train.schedule import lr_at


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
        ({"lr": -1.0}, "lr must be positive and finite, got -1.0"),
        ({"lr": math.nan}, "lr must be positive and finite, got nan"),
        ({"matrix_lr": 0.0}, "matrix_lr must be positive"),
        ({"betas": (0.9, 1.0)}, "betas must be at least 0 and below 1"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"warmup_steps": 11}, "got warmup_steps=11 and n_steps=10"),
        ({"n_accumulate": 3}, "n_accumulate must divide batch_size, got n_accumulate=3"),
        ({"ema_decay": 1.0}, "ema_decay must be above 0 and below 1"),
        ({"min_lr_ratio": 2.0}, "min_lr_ratio must be from 0 to 1"),
        ({"clip_norm": 0.0}, "None does not clip"),
        ({"eval_every": -1}, "eval_every must not be negative"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(**{"n_steps": 10, **fields})


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError, match="recipe: 2 problems"):
        Recipe(n_steps=0, lr=0.0)


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean cosine"):
        Recipe(n_steps=1, schedule="cosinus")  # type: ignore[arg-type]


def test_a_recipe_goes_through_json() -> None:
    recipe = Recipe(n_steps=10, betas=(0.8, 0.9), ema_decay=0.99, schedule="wsd")
    assert from_json(to_json(recipe), Recipe) == recipe


def rates(recipe: Recipe) -> list[float]:
    return [lr_at(recipe, step) for step in range(recipe.n_steps)]


def reference_rates(scheduler: Any, optimizer: Any, n: int) -> list[float]:
    seen = []
    for _ in range(n):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def sgd(lr: float) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def test_cosine_is_torchs() -> None:
    recipe = Recipe(n_steps=40, lr=0.3, min_lr_ratio=0.1, schedule="cosine")
    optimizer = sgd(0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.03)
    assert rates(recipe) == pytest.approx(reference_rates(reference, optimizer, 40), rel=1e-6)


def test_warm_up_and_cosine_are_transformers_one_update_later() -> None:
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    recipe = Recipe(n_steps=39, lr=0.3, min_lr_ratio=0.1, warmup_steps=10)
    optimizer = sgd(0.3)
    reference = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, num_warmup_steps=10, num_training_steps=39, min_lr_rate=0.1
    )
    theirs = reference_rates(reference, optimizer, 40)
    ours = rates(recipe)
    # The warm-up starts one update later there, from 0; the cosine stands where ours does.
    assert ours[:10] == pytest.approx(theirs[1:11], rel=1e-6)
    assert ours[10:] == pytest.approx(theirs[10:39], rel=1e-6)


def test_wsd_is_transformers() -> None:
    from transformers import get_wsd_schedule

    recipe = Recipe(
        n_steps=50, lr=0.2, min_lr_ratio=0.05, warmup_steps=5, decay_share=0.3, schedule="wsd"
    )
    optimizer = sgd(0.2)
    reference = get_wsd_schedule(
        optimizer,
        num_warmup_steps=5,
        num_stable_steps=30,
        num_decay_steps=15,
        decay_type="linear",
        min_lr_ratio=0.05,
    )
    # Their warm-up starts from min_lr_ratio; what follows is the same.
    theirs = reference_rates(reference, optimizer, 50)
    assert rates(recipe)[5:] == pytest.approx(theirs[5:], rel=1e-6)


def test_constant_stays() -> None:
    recipe = Recipe(n_steps=6, lr=0.2, warmup_steps=2, schedule="constant")
    assert rates(recipe) == pytest.approx([0.1, 0.2, 0.2, 0.2, 0.2, 0.2])


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_no_update_is_thrown_away(schedule: Any) -> None:
    recipe = Recipe(n_steps=20, warmup_steps=20, min_lr_ratio=0.0, schedule=schedule)
    assert min(rates(recipe)) > 0
    short = Recipe(n_steps=7, warmup_steps=2, min_lr_ratio=0.0, schedule=schedule)
    assert min(rates(short)) > 0
    assert max(rates(short)) == short.lr
