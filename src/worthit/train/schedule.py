"""The learning rate of every update, as a function of its number alone.

| schedule | source | after the warm-up |
|---|---|---|
| cosine | Loshchilov & Hutter 2016, arXiv:1608.03983, equation 5, one cycle | half a cosine down |
| wsd | Hu et al. 2024 (MiniCPM), arXiv:2404.06395, section 4.2 | stays, then falls in a line |
| constant | | stays |

The warm-up rises in a line from `lr / warmup_steps` (Goyal et al. 2017, arXiv:1706.02677, section
2.2, which starts one update later from 0: an update with rate 0 is an update thrown away).
"""

from __future__ import annotations

import math

from worthit.train.recipe import Recipe


def lr_ratio(recipe: Recipe, step: int) -> float:
    """The rate of update `step`, from 0 to `n_steps - 1`, as a share of `recipe.lr`."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    floor = recipe.min_lr_ratio
    if recipe.schedule == "constant":
        return 1.0
    if recipe.schedule == "cosine":
        done = _share(step - recipe.warmup_steps, recipe.n_steps - recipe.warmup_steps)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
    decay_steps = min(round(recipe.decay_share * recipe.n_steps), recipe.n_steps)
    decayed = step - max(recipe.n_steps - decay_steps, recipe.warmup_steps)
    return 1.0 if decayed < 0 else 1 - (1 - floor) * _share(decayed, decay_steps)


def lr_at(recipe: Recipe, step: int) -> float:
    """The rate of update `step`, from 0 to `n_steps - 1`."""
    return recipe.lr * lr_ratio(recipe, step)


def _share(step: int, n: int) -> float:
    # The last update, n - 1, is a full step away from the end: a rate of 0 would waste it.
    return min(step / n, 1.0) if n > 0 else 1.0
