"""Reading cells: effects with intervals, claims with states, predictions beside measurements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from worthit.errors import WorthitError
from worthit.lab.claims import Claim, Metric
from worthit.lab.experiment import Experiment, Prediction
from worthit.lab.statistics import (
    LEVEL,
    Interval,
    State,
    bootstrap_interval,
    differences,
    holm_levels,
    minimum_detectable_effect,
    p_value,
    seeds_needed,
    state_of,
    t_interval,
)

# Metrics by seed by arm.
Values = Mapping[str, Mapping[int, Mapping[str, float]]]
# What an effect says about being better, given the margin that matters.
Word = Literal["better", "worse", "same", "not worse", "not better", "unclear"]
Agreement = Literal["agrees", "off", "not predicted", "not measured"]
# A prediction that is this near counts as right where its own interval is narrower.
NEAR = 0.20


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What one arm does to one metric against another, or its own value where `against` is None.

    Attributes:
        per_seed: the effect of each seed: a difference, a ratio, or a value.
        interval: of its mean (ratios: of their geometric mean), by t.
        bootstrap: the same by resampling.
        sd: of what the interval is of: differences, logarithms of ratios, values.
    """

    metric: Metric
    arm: str
    against: str | None
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    interval: Interval
    bootstrap: Interval
    sd: float

    @property
    def is_ratio(self) -> bool:
        """Whether it is read as a ratio."""
        return self.against is not None and self.metric.scale == "ratio"

    @property
    def detectable(self) -> float:
        """The smallest effect that as many seeds would have told from none.

        A difference, or a share (0.05: 5 %) where it is a ratio.
        """
        if self.metric.is_exact:
            return 0.0
        found = minimum_detectable_effect(self.sd, len(self.seeds), level=self.interval.level)
        return math.expm1(found) if self.is_ratio and found < 700 else found

    def seeds_for(self, effect: float) -> int | None:
        """Seeds that would tell `effect`, as `detectable` counts it, from none."""
        if effect <= 0:
            return None
        return seeds_needed(self.sd, math.log1p(effect) if self.is_ratio else effect)

    @property
    def word(self) -> Word:
        """What may be said of it, given the margin that matters."""
        metric, low, high = self.metric, self.interval.low, self.interval.high
        none = 1.0 if self.is_ratio else 0.0
        # Gains point up, whichever way is good.
        if metric.better == "lower":
            low, high = 2 * none - high, 2 * none - low
        below, above = none - metric.margin, none + metric.margin
        if low >= above and low > none:
            return "better"
        if high <= below and high < none:
            return "worse"
        if low > below and high < above:
            return "same"
        if low > below:
            return "not worse"
        return "not better" if high < above else "unclear"


def has(values: Values, metric: Metric, *arms: str) -> bool:
    """Whether every seed of `arms` has `metric`: what only a variant has is compared with none."""
    return all(metric.id in found for arm in arms for found in values[arm].values())


def effect(
    values: Values, metric: Metric, arm: str, against: str | None, level: float = LEVEL
) -> Effect:
    """The effect of `arm` against another over the seeds that both have; or its value."""
    seeds = sorted(values[arm] if against is None else set(values[arm]) & set(values[against]))
    mine = _column(values, metric, arm, seeds)
    other = None if against is None else _column(values, metric, against, seeds)
    by_ratio = other is not None and metric.scale == "ratio"
    if metric.is_exact:
        numbers = _counted(metric, mine, other)
        exact = Interval(numbers[0], numbers[0], numbers[0], level, len(numbers), "exact")
        return Effect(
            metric=metric,
            arm=arm,
            against=against,
            seeds=tuple(seeds),
            per_seed=tuple(numbers),
            interval=exact,
            bootstrap=exact,
            sd=0.0,
        )
    numbers = mine if other is None else differences(mine, other, by_ratio=by_ratio)
    interval, bootstrap = t_interval(numbers, level), bootstrap_interval(numbers, level)
    mean = sum(numbers) / len(numbers)
    variance = sum((x - mean) ** 2 for x in numbers) / max(len(numbers) - 1, 1)
    return Effect(
        metric=metric,
        arm=arm,
        against=against,
        seeds=tuple(seeds),
        per_seed=tuple(math.exp(x) if by_ratio else x for x in numbers),
        interval=interval.exp() if by_ratio else interval,
        bootstrap=bootstrap.exp() if by_ratio else bootstrap,
        sd=math.sqrt(variance),
    )


def _counted(metric: Metric, mine: list[float], other: list[float] | None) -> list[float]:
    """What is counted is the same for every seed, and is divided as it is."""
    if len(set(mine)) > 1 or len(set(other or [0.0])) > 1:
        raise WorthitError(
            f"metric {metric.id!r} is said to be counted and differs between seeds; "
            "leave out is_exact"
        )
    if other is None:
        return mine
    if metric.scale == "ratio":
        return [a / b for a, b in zip(mine, other, strict=True)]
    return [a - b for a, b in zip(mine, other, strict=True)]


def _column(values: Values, metric: Metric, arm: str, seeds: Sequence[int]) -> list[float]:
    try:
        return [values[arm][seed][metric.id] for seed in seeds]
    except KeyError:
        known = ", ".join(sorted(next(iter(values[arm].values())))) or "none"
        raise WorthitError(
            f"arm {arm!r} gave no metric {metric.id!r}, only {known}; the experiment's function "
            "has to return it"
        ) from None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A claim, with the interval at the level that Holm allots it, and what that decides."""

    claim: Claim
    effect: Effect
    p: float
    state: State

    @property
    def is_contradicted(self) -> bool:
        """Whether the bootstrap decides the other way."""
        other = state_of(self.effect.bootstrap, self.claim.low, self.claim.high)
        return {self.state, other} == {"confirmed", "refuted"}


def read_claims(e: Experiment, values: Values, level: float = LEVEL) -> list[Reading]:
    """Every claim of `e`, decided together: each wrong with probability `1 - level` in all."""
    first = [effect(values, c.metric, c.arm, _against(e, c), level) for c in e.claims]
    p = [_p(claim, found) for claim, found in zip(e.claims, first, strict=True)]
    # What is counted is certain, and takes no share of the error.
    sampled = [i for i, claim in enumerate(e.claims) if not claim.metric.is_exact]
    levels = dict(zip(sampled, holm_levels([p[i] for i in sampled], level), strict=True))
    readings = []
    for i, claim in enumerate(e.claims):
        found = effect(values, claim.metric, claim.arm, _against(e, claim), levels.get(i, level))
        state = state_of(found.interval, claim.low, claim.high)
        readings.append(Reading(claim=claim, effect=found, p=p[i], state=state))
    return readings


def _against(e: Experiment, claim: Claim) -> str | None:
    return None if claim.is_value else claim.against or e.baseline.id


def _p(claim: Claim, found: Effect) -> float:
    numbers, low, high = found.per_seed, claim.low, claim.high
    if claim.metric.is_exact:
        return 0.0
    if found.is_ratio:
        numbers = tuple(math.log(x) for x in numbers)
        low = math.log(low) if low > 0 else -math.inf
        high = math.log(high) if high < math.inf else math.inf
    return p_value(numbers, low, high)


def state_of_all(readings: Iterable[Reading]) -> State:
    """Of an expectation made of several claims: refuted by any, confirmed by all."""
    states = [reading.state for reading in readings]
    if "refuted" in states:
        return "refuted"
    return "confirmed" if all(state == "confirmed" for state in states) else "inconclusive"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A prediction beside what was measured; `off_by` is measured over predicted, less one."""

    prediction: Prediction
    measured: Interval | None
    agreement: Agreement
    off_by: float | None = None


def compare(e: Experiment, predictions: Iterable[Prediction], values: Values) -> list[Comparison]:
    """Every prediction beside the effect that it is about."""
    metrics = {metric.id: metric for metric in e.metrics}
    found = []
    for p in predictions:
        against = None if p.is_value else e.baseline.id
        measured = effect(values, metrics[p.metric], p.arm, against).interval
        found.append(_compared(p, measured))
    return found


def _compared(p: Prediction, measured: Interval) -> Comparison:
    if p.value is None or not math.isfinite(p.value):
        return Comparison(prediction=p, measured=measured, agreement="not predicted")
    low = p.value if p.low is None else p.low
    high = p.value if p.high is None else p.high
    off_by = measured.estimate / p.value - 1 if p.value else None
    meets = measured.low <= high and low <= measured.high
    near = off_by is not None and abs(off_by) <= NEAR
    # An interval that is open on both sides meets anything and says nothing.
    meets = meets and not (math.isinf(measured.low) and math.isinf(measured.high))
    return Comparison(
        prediction=p,
        measured=measured,
        agreement="agrees" if meets or near else "off",
        off_by=off_by,
    )
