"""From n samples of a question to what k of them would have given, for every k up to n.

Each function is the mean over all subsets of k of the n samples, exactly: unbiased for the
expectation over k fresh ones, and of the least variance that an unbiased estimate from n samples
has. Taking 1 - (1 - c/n)^k in place of the first is biased, and too small.

- `pass_at_k`: one of k is right (Chen et al. 2021, "Evaluating Large Language Models Trained on
  Code", arXiv:2107.03374, equation 1).
- `best_at_k`: the one of k with the highest score is right; with equal scores, a random one of
  those. The order statistics of sampling without replacement.
- `majority_at_k`: the commonest of k is right; with as many votes, a random one of those. Counted
  by a polynomial whose powers are votes and ties, in place of all subsets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from worthit.errors import InputError


def pass_at_k(n: int, n_right: int, k: int) -> float:
    """The chance that one of `k` samples is right: 1 - C(n - c, k) / C(n, k).

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    _check(n, k)
    return 1 - math.comb(n - n_right, k) / math.comb(n, k)


def best_at_k(scores: Sequence[float], rights: Sequence[bool], k: int) -> float:
    """The chance that of `k` samples the one with the highest score is right."""
    n = len(scores)
    _check(n, k)
    total, n_above = 0.0, 0
    # From the highest score down: the best of a subset is in a group of equals where none of the
    # subset is above it and one at least is in it.
    for score in sorted(set(scores), reverse=True):
        group = [right for s, right in zip(scores, rights, strict=True) if s == score]
        ways = math.comb(n - n_above, k) - math.comb(n - n_above - len(group), k)
        # By symmetry each of the equals is the chosen one as often.
        total += ways * sum(group) / len(group)
        n_above += len(group)
    return total / math.comb(n, k)


def majority_at_k(answers: Sequence[Hashable | None], rights: Sequence[bool], k: int) -> float:
    """The chance that of `k` samples the commonest answer is right; None does not vote.

    Answers that are written differently are different votes, right or not.
    """
    n = len(answers)
    _check(n, k)
    counts = Counter(answer for answer in answers if answer is not None)
    is_right = {a: r for a, r in zip(answers, rights, strict=True) if a is not None}
    n_silent = n - sum(counts.values())
    total = 0.0
    for answer, m in counts.items():
        if not is_right[answer]:
            continue
        others = [c for other, c in counts.items() if other != answer]
        for votes in range(1, min(m, k) + 1):
            # ways[t][j]: to choose j of the others, none with more votes and t with as many.
            ways = _no_more_than(others, votes, k - votes)
            for n_ties, row in enumerate(ways):
                for j, way in enumerate(row):
                    silent = math.comb(n_silent, k - votes - j)
                    total += math.comb(m, votes) * way * silent / (n_ties + 1)
    return total / math.comb(n, k)


def _no_more_than(counts: Sequence[int], votes: int, most: int) -> list[list[int]]:
    """Ways to choose j of groups of these sizes, at most `votes` of each, by how many reach it."""
    ways = [[1] + [0] * most]
    for size in counts:
        grown = [[0] * (most + 1) for _ in range(len(ways) + 1)]
        for ties, row in enumerate(ways):
            for j, way in enumerate(row):
                if not way:
                    continue
                for taken in range(min(size, votes, most - j) + 1):
                    grown[ties + (taken == votes)][j + taken] += way * math.comb(size, taken)
        while len(grown) > 1 and not any(grown[-1]):
            grown.pop()
        ways = grown
    return ways


def divergence_of_best(n: int) -> float:
    """Nats between best-of-n and one sample: log n - (n - 1) / n, exact where no scores are equal.

    Beirami et al. 2024, "Theoretical guarantees on the best-of-n alignment policy",
    arXiv:2401.01879, where it is shown to be an upper bound in general.
    """
    return math.log(n) - (n - 1) / n


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise InputError(f"k: must be from 1 to the number of samples, {n}, got {k}")
