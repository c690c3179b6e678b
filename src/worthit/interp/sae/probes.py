"""Do latents carry what is known to be there? Recovery, absorption, splitting, and agreement.

Where the truth is known, as directions or as labels, an autoencoder can be wrong in ways that its
reconstruction does not show (Chanin et al. 2024, "A is for Absorption", arXiv:2409.14507; Karvonen
et al. 2025, "SAEBench", arXiv:2503.09532; Paulo and Belrose 2025, arXiv:2501.16615):

| probe | what |
|---|---|
| recovery | share of true directions that some latent points to |
| single | how well one latent tells a labelled property, best of all latents: AUROC |
| absorption | share of rows with a property where its own latent is off and others explain it |
| splitting | how many latents it takes to tell a property as well as all do |
| agreement | share of latents that another initialisation found too |
"""

from __future__ import annotations

import torch
from torch import Tensor

# Two directions are the same one from this cosine on.
SAME = 0.9


def recovery(found: Tensor, true: Tensor, *, same: float = SAME) -> float:
    """Share of `true` `(m, d)` directions with one of `found` `(n, d)` at a cosine of `same`."""
    return float(((true @ found.T).amax(1) >= same).double().mean())


def agreement(one: Tensor, other: Tensor, *, same: float = SAME) -> float:
    """Share of directions of `one` that `other` has too, each matched once (Hungarian).

    Args:
        one, other: `(n, d)`, of length 1; pass those in use alone.
    """
    from scipy.optimize import linear_sum_assignment

    if not len(one) or not len(other):
        return 0.0
    cosines = one @ other.T
    rows, cols = linear_sum_assignment(-cosines.numpy())
    return float((cosines[rows, cols] >= same).sum()) / len(one)


def auroc(values: Tensor, labels: Tensor) -> Tensor:
    """Of each column of `values` `(n, m)` for booleans `labels` `(n,)`, ties half: `(m,)`."""
    n_true, n_false = int(labels.sum()), int((~labels).sum())
    if not n_true or not n_false:
        return torch.full((values.shape[1],), 0.5)
    columns = []
    for column in values.T:
        _, inverse, counts = column.unique(return_inverse=True, return_counts=True)
        # Mean rank of equal values.
        ends = counts.cumsum(0).double()
        ranks = (ends - (counts.double() - 1) / 2)[inverse]
        columns.append((ranks[labels].sum() - n_true * (n_true + 1) / 2) / (n_true * n_false))
    return torch.stack(columns)


def single(latents: Tensor, labels: Tensor) -> tuple[int, float]:
    """The latent that tells `labels` best, and its AUROC; `latents` `(n, width)`."""
    used = (latents > 0).any(0).nonzero()[:, 0]
    if not len(used):
        return -1, 0.5
    scores = auroc(latents[:, used], labels)
    best = int(scores.argmax())
    return int(used[best]), float(scores[best])


def absorption(latents: Tensor, on: Tensor, directions: Tensor, true: Tensor) -> float:
    """Share of rows with a feature where the latent of that feature is off.

    Args:
        latents: `(n, width)`.
        on: `(n,)` booleans, rows that have the feature.
        directions: `(width, d)`, where latents point.
        true: `(d,)`, the feature's direction.
    """
    own = int((directions @ true).argmax())
    return 1.0 - float((latents[on, own] > 0).double().mean())


def splitting(latents: Tensor, labels: Tensor, *, within: float = 0.02, most: int = 16) -> int:
    """How many latents, added greedily (any of them on), tell `labels` as well as `most` do.

    1 where one latent has the property; several where it was split among them.
    """
    on = latents > 0
    found = torch.zeros(len(on), dtype=torch.bool)
    scores: list[float] = []
    for _ in range(most):
        joined = found[:, None] | on
        hits, alarms = joined[labels].double().mean(0), joined[~labels].double().mean(0)
        balanced = (hits + 1 - alarms) / 2
        best = int(balanced.argmax())
        if scores and float(balanced[best]) <= scores[-1]:
            break
        found = joined[:, best]
        scores.append(float(balanced[best]))
    return next(i + 1 for i, score in enumerate(scores) if score >= scores[-1] - within)
