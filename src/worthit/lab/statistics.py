"""From numbers of several seeds to an interval, and from an interval to what may be said.

Arms share their seeds, so that everything is read off paired differences: what a seed makes easy,
it makes easy for both. Times, bytes and rates are compared by ratio, which is a difference of
logarithms.

| | by |
|---|---|
| intervals of a mean | Student's t; beside it the bootstrap, BCa (Efron 1987, JASA 82:171) |
| superior, not worse | the interval against the margin: a one-sided t test |
| the same | likewise, two tests (Schuirmann 1987, J. Pharmacokin. Biopharm. 15:657) |
| several claims at once | intervals that widen with them (Holm 1979, Scand. J. Statist. 6:65) |
| the smallest effect to be seen | power of the t test, by the noncentral t distribution |
| successes among trials | exact (Clopper & Pearson 1934, Biometrika 26:404) |

Never a bare p-value: p orders the claims for Holm, and the interval decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from scipy import optimize, stats

from worthit._record import value
from worthit.errors import InputError

State = Literal["confirmed", "refuted", "inconclusive"]
Array = np.ndarray[Any, np.dtype[np.float64]]
LEVEL = 0.95
POWER = 0.8
N_RESAMPLES = 4999
# Below this share of the numbers, or of 1, differences are those of floating point.
ROUNDING = 1e-13


@value
class Interval:
    """An estimate and the interval around it; infinite where there is too little to know."""

    estimate: float
    low: float
    high: float
    level: float = LEVEL
    n: int = 1
    method: str = "t"

    def exp(self) -> Interval:
        """From logarithms to ratios."""
        return Interval(
            _exp(self.estimate), _exp(self.low), _exp(self.high), self.level, self.n, self.method
        )


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean of `values` by Student's t; infinite for one value.

    >>> round(t_interval([1.0, 2.0, 3.0]).low, 6)
    -0.484138
    """
    x = _finite(values)
    mean, n = float(x.mean()), len(x)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, level, n)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1) * x.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, level, n)


def bootstrap_interval(
    values: Sequence[float],
    level: float = LEVEL,
    *,
    method: Literal["BCa", "percentile"] = "BCa",
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of `values` by resampling them; a point where they are all equal.

    With a handful of seeds it is too narrow; it is there to contradict t where that is wrong.
    """
    x = _finite(values)
    mean, n = float(x.mean()), len(x)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, level, n, method)
    if _is_constant(x):
        return Interval(mean, mean, mean, level, n, method)
    found = stats.bootstrap(
        (x,),
        np.mean,
        confidence_level=level,
        method=method,
        n_resamples=n_resamples,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), level, n, method)


def differences(a: Sequence[float], b: Sequence[float], *, by_ratio: bool = False) -> list[float]:
    """`a - b` seed by seed; of their logarithms where they are compared by ratio.

    Raises:
        InputError: a number that has no logarithm.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if by_ratio:
        if min(first.min(), second.min()) <= 0:
            raise InputError(
                "a ratio needs positive numbers, got "
                f"{min(first.min(), second.min()):g}; compare by difference"
            )
        first, second = np.log(first), np.log(second)
    found: list[float] = (first - second).tolist()
    return found


def p_value(values: Sequence[float], low: float, high: float) -> float:
    """One-sided p of the nearest edge of the region `(low, high)`.

    The smallest alpha at which the `1 - 2 alpha` interval of the mean lies wholly on one side of
    every edge: of superiority, non-inferiority, and for two edges the larger of two one-sided
    tests.
    """
    x = _finite(values)
    distance = min(abs(float(x.mean()) - edge) for edge in (low, high))
    if math.isinf(distance):
        return 0.0
    if len(x) == 1 or distance == 0:
        return 0.5
    if _is_constant(x):
        return 0.0
    error = float(x.std(ddof=1)) / math.sqrt(len(x))
    return float(stats.t.sf(distance / error, len(x) - 1))


def state_of(interval: Interval, low: float, high: float) -> State:
    """Whether the effect lies in the region `(low, high)`, as far as `interval` can tell."""
    if low < interval.low and interval.high < high:
        return "confirmed"
    if interval.high <= low or interval.low >= high:
        return "refuted"
    return "inconclusive"


def holm_levels(p: Sequence[float], level: float = LEVEL) -> list[float]:
    """The level of interval at which each of several claims is read, by their p-values.

    The smallest p is read as the strictest, at `1 - (1 - level) / m`, the next with `m - 1`; once
    one cannot be told, the others are read as strictly as it was. All statements that the intervals
    then make are right together with probability `level`.

    >>> holm_levels([0.2, 0.0001])
    [0.95, 0.975]
    """
    levels = [level] * len(p)
    order = sorted(range(len(p)), key=lambda i: p[i])
    n_left = len(p)
    for i in order:
        alpha = (1 - level) / n_left
        levels[i] = 1 - alpha
        # An interval excludes an edge where p is below half of its alpha.
        if p[i] < alpha / 2:
            n_left -= 1
    return levels


def minimum_detectable_effect(
    sd: float, n: int, *, level: float = LEVEL, power: float = POWER
) -> float:
    """The smallest mean difference that `n` pairs would tell from zero with probability `power`.

    `sd` is that of the differences. Infinite for one pair.
    """
    if n < 2:
        return math.inf
    if sd == 0:
        return 0.0
    critical = float(stats.t.ppf(0.5 + level / 2, n - 1))

    def lacking(noncentrality: float) -> float:
        return float(stats.nct.sf(critical, n - 1, noncentrality)) - power

    found = optimize.brentq(lacking, 0.0, 20 * critical + 20)
    return float(found) * sd / math.sqrt(n)


def seeds_needed(
    sd: float, effect: float, *, level: float = LEVEL, power: float = POWER, most: int = 1000
) -> int | None:
    """Pairs that would tell `effect` from zero; None where more than `most` would."""
    if effect <= 0:
        return None
    low, high = 2, most
    if minimum_detectable_effect(sd, most, level=level, power=power) > effect:
        return None
    while low < high:
        middle = (low + high) // 2
        if minimum_detectable_effect(sd, middle, level=level, power=power) <= effect:
            high = middle
        else:
            low = middle + 1
    return low


def proportion_interval(n_right: int, n: int, level: float = LEVEL) -> Interval:
    """Successes among independent trials, exactly (Clopper-Pearson).

    >>> round(proportion_interval(0, 10).high, 6)
    0.308497
    """
    found = stats.binomtest(n_right, n).proportion_ci(confidence_level=level, method="exact")
    return Interval(n_right / n, float(found.low), float(found.high), level, n, "exact")


def sign_test(values: Sequence[float]) -> float:
    """Two-sided exact p that the median of `values` is zero; zeros count for neither side."""
    x = _finite(values)
    n_up, n_down = int((x > 0).sum()), int((x < 0).sum())
    if n_up + n_down == 0:
        return 1.0
    return float(stats.binomtest(n_up, n_up + n_down).pvalue)


def _finite(values: Sequence[float]) -> Array:
    x: Array = np.asarray(values, dtype=float)
    if x.size == 0 or not np.isfinite(x).all():
        raise InputError(f"statistics need finite numbers, got {x.tolist() or 'none'}")
    return x


def _is_constant(x: Array) -> bool:
    """Whether all numbers are equal, but for the rounding of what they were computed from."""
    return bool(np.ptp(x) <= ROUNDING * max(float(np.abs(x).max()), 1.0))


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
