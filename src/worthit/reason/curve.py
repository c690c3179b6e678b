"""Accuracy against tokens: every strategy as a line, and the one to take at each budget.

The compute-optimal strategy of a budget is the one with the highest accuracy among those that spend
no more (Snell et al. 2024, arXiv:2408.03314, equation 1, over all questions alike). Where questions
may get different numbers of samples, `allocate` shares a budget out.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worthit.reason.estimate import best_at_k, majority_at_k, pass_at_k
from worthit.reason.question import Chosen

# Draws of a bootstrap, and the share of them within an interval.
N_RESAMPLED = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Point:
    """One strategy at one setting.

    Attributes:
        setting: the number of samples, beams, waits or revisions.
        n_tokens: said for a question, on average.
        accuracy: mean over questions, with its interval over them: other questions of the same
            kind would have given another.
    """

    strategy: str
    setting: int
    n_tokens: float
    accuracy: float
    low: float
    high: float
    is_oracle: bool = False

    def to_json(self) -> dict[str, object]:
        """The record's form."""
        return dict(vars(self))


def point(
    strategy: str,
    setting: int,
    rights: Sequence[float],
    n_tokens: Sequence[float],
    *,
    is_oracle: bool = False,
) -> Point:
    """A point from each question's chance to be right and its tokens."""
    low, high = interval(rights)
    return Point(
        strategy=strategy,
        setting=setting,
        n_tokens=sum(n_tokens) / len(n_tokens),
        accuracy=sum(rights) / len(rights),
        low=low,
        high=high,
        is_oracle=is_oracle,
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean's interval by a percentile bootstrap over questions, always with the same draws."""
    rng, n = random.Random(0), len(values)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(N_RESAMPLED))
    cut = round((1 - CONFIDENCE) / 2 * N_RESAMPLED)
    return means[cut], means[-1 - cut]


def of_chosen(
    strategy: str, setting: int, chosen: Sequence[Chosen], *, is_oracle: bool = False
) -> Point:
    """The point of what a strategy chose."""
    rights = [float(one.is_right) for one in chosen]
    tokens = [float(one.n_said) for one in chosen]
    return point(strategy, setting, rights, tokens, is_oracle=is_oracle)


def of_samples(
    chosen: Sequence[Chosen],
    read: Callable[[str], str | None],
    ks: Sequence[int],
    scores: Sequence[Sequence[float]] | None = None,
) -> list[Point]:
    """What k of each question's samples give, for every strategy that chooses among samples.

    `best-of-n` has an exact check, and is what any verifier could reach at most;
    `best-of-n by probability` and `self-consistency` know no more than the model.

    Args:
        chosen: each with all its samples in `drafts`.
        scores: of each question's samples, for the second; None leaves it out.
    """
    found = []
    answers = [[read(draft.text) for draft in one.drafts] for one in chosen]
    rights = [
        [a is not None and one.question.is_right(a) for a in own]
        for one, own in zip(chosen, answers, strict=True)
    ]
    means = [sum(d.n_said for d in one.drafts) / len(one.drafts) for one in chosen]
    for k in ks:
        tokens = [k * mean for mean in means]
        passed = [pass_at_k(len(own), sum(own), k) for own in rights]
        found.append(point("best-of-n, exact check", k, passed, tokens, is_oracle=True))
        if scores is not None:
            best = [best_at_k(s, own, k) for s, own in zip(scores, rights, strict=True)]
            found.append(point("best-of-n by probability", k, best, tokens))
        voted = [majority_at_k(a, own, k) for a, own in zip(answers, rights, strict=True)]
        found.append(point("self-consistency", k, voted, tokens))
    return found


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no cheaper or equal one matches, cheapest first: the compute-optimal choice.

    At a budget of tokens take the last whose `n_tokens` it covers.
    """
    best, found = -math.inf, []
    for one in sorted(points, key=lambda p: (p.n_tokens, -p.accuracy)):
        if one.accuracy > best:
            best = one.accuracy
            found.append(one)
    return found


def allocate(chances: Sequence[float], budget: int) -> list[int]:
    """How many samples each question gets so that most questions have a right one, in expectation.

    With chance p a sample, n samples have a right one with 1 - (1 - p)^n, and one more adds
    p (1 - p)^n. That falls with n, so taking the largest gain each time is optimal.

    >>> allocate([0.9, 0.1], 3)
    [1, 2]
    """
    counts = [0] * len(chances)
    heap = [(-p, i) for i, p in enumerate(chances) if p > 0]
    heapq.heapify(heap)
    for _ in range(budget if heap else 0):
        gain, i = heapq.heappop(heap)
        counts[i] += 1
        heapq.heappush(heap, (gain * (1 - chances[i]), i))
    return counts
