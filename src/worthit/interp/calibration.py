"""How good a score is that says *this is wrong*: ranking, calibration, abstention, with intervals.

    AUROC   the chance that a positive scores above a negative, ties half (Hanley & McNeil 1982)
    ECE     sum over bins of (n_b / n) |mean probability - share of positives|
            (Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599, equation 3)
    Brier   mean (probability - outcome)^2 (Brier 1950)
    risk at coverage c: the share of errors among the c most trusted (El-Yaniv & Wiener 2010)

Intervals are percentiles of a bootstrap over rows (Efron 1979). Scores become probabilities by
Platt's scaling (Platt 1999), fitted on other rows than those that are judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worthit.errors import InputError

Array = NDArray[np.float64]
N_RESAMPLES = 1000
N_BINS = 10


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auroc(score: ArrayLike, is_positive: ArrayLike) -> float:
    """The chance that a positive has the higher score; ties count half.

    Raises:
        InputError: all rows are of one kind.
    """
    s, y = _pair(score, is_positive)
    n_positive = int(y.sum())
    if not 0 < n_positive < len(y):
        raise InputError("AUROC needs rows of both kinds, got one kind only")
    _, inverse, counts = np.unique(s, return_inverse=True, return_counts=True)
    # The mean rank of tied scores, from 1.
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    above = ranks[y > 0].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * (len(y) - n_positive)))


def expected_calibration_error(
    probability: ArrayLike, is_positive: ArrayLike, *, n_bins: int = N_BINS
) -> float:
    """ECE over `n_bins` bins of equal width; the last one holds probability 1."""
    p, y = _pair(probability, is_positive)
    if p.min() < 0 or p.max() > 1:
        raise InputError(f"probability: must lie in [0, 1], got {p.min():.3g} to {p.max():.3g}")
    places = np.minimum((p * n_bins).astype(int), n_bins - 1)
    total = 0.0
    for b in np.unique(places):
        here = places == b
        total += here.mean() * abs(p[here].mean() - y[here].mean())
    return float(total)


def brier(probability: ArrayLike, is_positive: ArrayLike) -> float:
    """Mean squared distance of a probability from what happened."""
    p, y = _pair(probability, is_positive)
    return float(np.square(p - y).mean())


def abstention_curve(trust: ArrayLike, is_wrong: ArrayLike) -> list[tuple[float, float]]:
    """`(coverage, share of errors)` as less trusted rows are left unanswered, from one to all.

    Rows of equal trust are answered together.
    """
    t, wrong = _pair(trust, is_wrong)
    order = np.argsort(-t, kind="stable")
    errors, trusted = np.cumsum(wrong[order]), t[order]
    ends = np.flatnonzero(np.append(trusted[1:] != trusted[:-1], True))
    n = len(t)
    return [((i + 1) / n, float(errors[i] / (i + 1))) for i in ends]


def area_under_risk(curve: list[tuple[float, float]]) -> float:
    """The mean share of errors over all coverages: the step function of `abstention_curve`."""
    area, before = 0.0, 0.0
    for coverage, risk in curve:
        area += (coverage - before) * risk
        before = coverage
    return area


@dataclass(frozen=True)
class Platt:
    """`sigmoid(slope * score + offset)`: a score as a probability."""

    slope: float
    offset: float

    def __call__(self, score: ArrayLike) -> Array:
        """Probabilities, of the shape of `score`."""
        z = self.slope * np.asarray(score, float) + self.offset
        return np.asarray(1 / (1 + np.exp(-np.clip(z, -500, 500))))


def platt(score: ArrayLike, is_positive: ArrayLike, *, n_steps: int = 50) -> Platt:
    """Fit by Newton's method to Platt's smoothed targets, which keep it finite where kinds part.

    Source:
        Platt 1999; targets (n+ + 1) / (n+ + 2) and 1 / (n- + 2).
    """
    s, y = _pair(score, is_positive)
    n_positive, n_negative = y.sum(), len(y) - y.sum()
    target = np.where(y > 0, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    centre, scale = s.mean(), s.std() or 1.0
    x = np.stack([(s - centre) / scale, np.ones_like(s)], axis=1)
    w = np.zeros(2)
    for _ in range(n_steps):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        curvature = (x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, x.T @ (p - target))
        # Far from the optimum a full step overshoots.
        w = w - step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
    slope = w[0] / scale
    return Platt(float(slope), float(w[1] - slope * centre))


def estimate(
    statistic: Callable[..., float], *columns: ArrayLike, seed: int = 0, n: int = N_RESAMPLES
) -> Estimate:
    """`statistic(*columns)` with the 2.5th and 97.5th percentile over `n` resamples of rows.

    Resamples on which the statistic is not defined (one kind only) are drawn again.
    """
    arrays = [np.asarray(column, float) for column in columns]
    value = statistic(*arrays)
    generator = np.random.default_rng(seed)
    drawn: list[float] = []
    for _ in range(10 * n):
        rows = generator.integers(len(arrays[0]), size=len(arrays[0]))
        try:
            drawn.append(statistic(*(a[rows] for a in arrays)))
        except InputError:
            continue
        if len(drawn) == n:
            break
    if not drawn:
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def interval_of_mean(values: ArrayLike, *, seed: int = 0) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927), which also holds at 0 and at 1."""
    v = np.asarray(values, float)
    n, p, z = len(v), float(v.mean()), 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return float(middle - half), float(middle + half)


@dataclass(frozen=True)
class DetectorReport:
    """How well a score tells errors from right answers, on rows it was not calibrated on."""

    name: str
    auroc: Estimate
    ece: Estimate
    brier: float
    base_rate: float
    curve: list[tuple[float, float]]
    n: int

    @property
    def is_useless(self) -> bool:
        """Whether it may be no better than chance."""
        return not self.auroc.low > 0.5

    def to_json(self) -> dict[str, Any]:
        """Its part of a record."""
        return {
            "name": self.name,
            "auroc": vars(self.auroc) | {},
            "ece": vars(self.ece) | {},
            "brier": self.brier,
            "errors": self.base_rate,
            "risk_by_coverage": [list(point) for point in self.curve],
            "n": self.n,
            "is_useless": self.is_useless,
        }


def judge_detector(
    name: str,
    score: ArrayLike,
    is_wrong: ArrayLike,
    *,
    fit_score: ArrayLike,
    fit_is_wrong: ArrayLike,
    seed: int = 0,
) -> DetectorReport:
    """A detector's report on rows `score`; calibrated on the rows `fit_score`."""
    s, wrong = _pair(score, is_wrong)
    p = platt(fit_score, fit_is_wrong)(s)
    return DetectorReport(
        name=name,
        auroc=estimate(auroc, s, wrong, seed=seed),
        ece=estimate(expected_calibration_error, p, wrong, seed=seed),
        brier=brier(p, wrong),
        base_rate=float(wrong.mean()),
        curve=abstention_curve(-s, wrong),
        n=len(s),
    )


def _pair(score: ArrayLike, is_positive: ArrayLike) -> tuple[Array, Array]:
    s, y = np.asarray(score, float).ravel(), np.asarray(is_positive, float).ravel()
    if len(s) != len(y) or not len(s):
        raise InputError(f"scores and outcomes pair up, got {len(s)} and {len(y)}")
    if not np.isfinite(s).all():
        raise InputError("scores: hold numbers that are not finite")
    if not set(np.unique(y)) <= {0.0, 1.0}:
        raise InputError("outcomes: must be 0 or 1")
    return s, y
