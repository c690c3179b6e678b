"""Estimates beside the mean over all subsets, which they claim to be."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from worthit.errors import InputError
from worthit.reason.curve import Point, allocate, frontier
from worthit.reason.estimate import best_at_k, divergence_of_best, majority_at_k, pass_at_k


def over_subsets(n: int, k: int, value: object) -> float:
    subsets = list(itertools.combinations(range(n), k))
    return sum(value(s) for s in subsets) / len(subsets)  # type: ignore[operator]


@pytest.mark.parametrize("seed", range(6))
def test_every_estimate_is_the_mean_over_subsets(seed: int) -> None:
    rng = random.Random(seed)
    n = 7
    answers = [rng.choice(["a", "a", "b", "c", "d", None]) for _ in range(n)]
    right = {"a"} if seed % 2 else {"b", "d"}
    rights = [answer in right for answer in answers]
    scores = [rng.choice([0.0, 0.5, 1.0]) for _ in range(n)]

    def passed(subset: Sequence[int]) -> float:
        return any(rights[i] for i in subset)

    def best(subset: Sequence[int]) -> float:
        top = max(scores[i] for i in subset)
        tied = [rights[i] for i in subset if scores[i] == top]
        return sum(tied) / len(tied)

    def voted(subset: Sequence[int]) -> float:
        votes = Counter(answers[i] for i in subset if answers[i] is not None)
        if not votes:
            return 0.0
        tied = [a for a, c in votes.items() if c == max(votes.values())]
        return sum(a in right for a in tied) / len(tied)

    for k in range(1, n + 1):
        assert pass_at_k(n, sum(rights), k) == pytest.approx(over_subsets(n, k, passed))
        assert best_at_k(scores, rights, k) == pytest.approx(over_subsets(n, k, best))
        assert majority_at_k(answers, rights, k) == pytest.approx(over_subsets(n, k, voted))


def test_an_oracle_score_makes_best_of_n_coverage() -> None:
    rights = [True, False, False, True, False, False]
    for k in range(1, 7):
        by_score = best_at_k([float(r) for r in rights], rights, k)
        assert by_score == pytest.approx(pass_at_k(6, 2, k))


def test_the_estimate_is_unbiased_and_the_plug_in_is_not() -> None:
    # Over all outcomes of n flips with chance p, weighed by their probability.
    n, k, p = 6, 3, 0.3
    chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    ours = sum(w * pass_at_k(n, c, k) for c, w in enumerate(chances))
    plug_in = sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(chances))
    assert ours == pytest.approx(1 - (1 - p) ** k)
    assert plug_in < ours - 0.02


def test_divergence_is_that_of_the_best_of_n_uniform_scores() -> None:
    # The best of n uniforms has density n x^(n-1): its divergence from 1 by a sum over a grid.
    n, cells = 5, 200_000
    xs = [(i + 0.5) / cells for i in range(cells)]
    density = [n * x ** (n - 1) for x in xs]
    grid = sum(d * math.log(d) for d in density) / cells
    assert divergence_of_best(n) == pytest.approx(grid, abs=1e-4)


def test_k_beyond_the_samples_is_refused() -> None:
    with pytest.raises(InputError, match="k: must be from 1 to the number of samples, 4, got 5"):
        pass_at_k(4, 1, 5)


@pytest.mark.parametrize("budget", [1, 3, 6])
def test_allocation_is_the_best_of_all(budget: int) -> None:
    chances = [0.9, 0.3, 0.05, 0.0]

    def solved(counts: Sequence[int]) -> float:
        return sum(1 - (1 - p) ** n for p, n in zip(chances, counts, strict=True))

    every = itertools.product(range(budget + 1), repeat=len(chances))
    best = max(solved(c) for c in every if sum(c) == budget)
    assert solved(allocate(chances, budget)) == pytest.approx(best)


def test_the_frontier_leaves_out_what_is_dearer_and_no_better() -> None:
    def at(strategy: str, n_tokens: float, accuracy: float) -> Point:
        return Point(
            strategy=strategy, setting=1, n_tokens=n_tokens, accuracy=accuracy, low=0, high=1
        )

    points = [at("a", 10, 0.5), at("b", 20, 0.5), at("c", 15, 0.4), at("d", 30, 0.7)]
    assert [p.strategy for p in frontier(points)] == ["a", "d"]
