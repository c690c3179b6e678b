"""What an experiment expects, as a region that an effect must lie in.

An effect is a difference, a ratio or the value of one arm. Its interval decides: wholly inside the
region the claim is confirmed, wholly outside refuted, and inconclusive where it straddles an edge.
Every function below makes such a region; margins come from the metric unless they are given.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

from worthit._record import record
from worthit.errors import SpecError

Better = Literal["higher", "lower"]
Scale = Literal["difference", "ratio"]


@record
class Metric:
    """One number that every arm gets, for every seed.

    Args:
        id: its key in the results.
        name: as it reads in a sentence: `test loss`.
        unit: of the value; empty for shares and counts.
        better: which way is good.
        margin: the smallest change that matters: in the metric's unit, or as a share where arms
            are compared by ratio (0.05 for 5 %).
        scale: whether arms are compared by difference or by ratio (times, bytes, rates).
        is_exact: counted, not sampled: one value says it all, and it has no interval.
    """

    id: str
    name: str
    margin: float
    unit: str = ""
    better: Better = "lower"
    scale: Scale = "difference"
    is_exact: bool = False

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise SpecError(f"metric {self.id!r}: margin must not be negative, got {self.margin}")


@record
class Claim:
    """That the effect of `arm` on `metric` lies between `low` and `high`.

    The effect is that of `arm` against another arm (`against`, the baseline unless it is named),
    or the value of `arm` itself where `is_value`.
    """

    statement: str
    metric: Metric
    arm: str
    low: float = -math.inf
    high: float = math.inf
    against: str | None = None
    is_value: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise SpecError(
                f"claim {self.statement!r}: low must be below high, got {self.low} and {self.high}"
            )


def superior(
    metric: Metric, arm: str, *, by: float | None = None, against: str | None = None
) -> Claim:
    """`arm` is better by at least `by`; 0 where any improvement counts."""
    by = metric.margin if by is None else by
    text = f"better by at least {amount(metric, by)}" if by else "better"
    return _claim(metric, arm, text, _beyond(metric, by), against)


def no_worse(
    metric: Metric, arm: str, *, margin: float | None = None, against: str | None = None
) -> Claim:
    """`arm` is worse by less than `margin`, if at all (non-inferiority)."""
    margin = metric.margin if margin is None else margin
    text = f"not worse by more than {amount(metric, margin)}"
    return _claim(metric, arm, text, _beyond(metric, -margin), against)


def not_better(
    metric: Metric, arm: str, *, by: float | None = None, against: str | None = None
) -> Claim:
    """`arm` gains less than `by`, if anything: what "it does not help" means."""
    by = metric.margin if by is None else by
    text = f"not better by {amount(metric, by)} or more"
    return _claim(metric, arm, text, _outside(metric, _beyond(metric, by)), against)


def worse(
    metric: Metric, arm: str, *, by: float | None = None, against: str | None = None
) -> Claim:
    """`arm` is worse by at least `by`: a failure that is expected."""
    by = metric.margin if by is None else by
    text = f"worse by at least {amount(metric, by)}"
    return _claim(metric, arm, text, _outside(metric, _beyond(metric, -by)), against)


def same(
    metric: Metric, arm: str, *, margin: float | None = None, against: str | None = None
) -> Claim:
    """`arm` is neither better nor worse by `margin` (equivalence: two one-sided tests)."""
    margin = metric.margin if margin is None else margin
    text = f"the same within {amount(metric, margin)}"
    is_ratio = metric.scale == "ratio"
    region = (1 / (1 + margin), 1 + margin) if is_ratio else (-margin, margin)
    return _claim(metric, arm, text, region, against)


def ratio_between(
    metric: Metric, arm: str, low: float, high: float = math.inf, *, against: str | None = None
) -> Claim:
    """`metric` of `arm` is between `low` and `high` times the other's; 0 and inf leave it open."""
    if metric.scale != "ratio":
        raise SpecError(f"metric {metric.id!r} is compared by difference; give it scale='ratio'")
    text = f"{low:g} to {high:g} times"
    if low <= 0:
        text = f"at most {high:g} times"
    elif math.isinf(high):
        text = f"at least {low:g} times"
    return _claim(metric, arm, text, (low, high), against)


def at_least(metric: Metric, arm: str, value: float) -> Claim:
    """`metric` of `arm` itself is `value` or more."""
    text = f"{arm}: {metric.name} at least {value:g} {metric.unit}".rstrip()
    return Claim(statement=text, metric=metric, arm=arm, low=value, is_value=True)


def at_most(metric: Metric, arm: str, value: float) -> Claim:
    """`metric` of `arm` itself is `value` or less."""
    text = f"{arm}: {metric.name} at most {value:g} {metric.unit}".rstrip()
    return Claim(statement=text, metric=metric, arm=arm, high=value, is_value=True)


def ordered(metric: Metric, *arms: str, by: float = 0.0) -> tuple[Claim, ...]:
    """Each of `arms` is better than the next by at least `by`; best first. Spread it with `*`."""
    return tuple(superior(metric, first, by=by, against=second) for first, second in pairwise(arms))


def amount(metric: Metric, size: float) -> str:
    """A margin in words: `0.01 nats`, `5 %`.

    >>> amount(Metric(id="t", name="time", margin=0.05, unit="s", scale="ratio"), 0.05)
    '5 %'
    """
    if metric.scale == "ratio":
        return f"{100 * size:.3g} %"
    return f"{size:g} {metric.unit}".rstrip()


def _claim(
    metric: Metric, arm: str, text: str, region: tuple[float, float], against: str | None
) -> Claim:
    low, high = region
    other = "" if against is None else f" against {against}"
    statement = f"{arm}: {metric.name} {text}{other}"
    return Claim(statement=statement, metric=metric, arm=arm, low=low, high=high, against=against)


def _beyond(metric: Metric, by: float) -> tuple[float, float]:
    """The effects that are better by at least `by`; below 0 allows for that much worse.

    As ratios `by` is a share of the other's value: 20 % better is 0.8 times a time and 1.2 times a
    rate, 20 % worse 1.2 times a time and 0.8 times a rate.
    """
    none = 1.0 if metric.scale == "ratio" else 0.0
    if metric.better == "lower":
        return _least(metric), none - by
    return none + by, math.inf


def _outside(metric: Metric, region: tuple[float, float]) -> tuple[float, float]:
    """The other side of a region that is open on the good side."""
    low, high = region
    return (high, math.inf) if metric.better == "lower" else (_least(metric), low)


def _least(metric: Metric) -> float:
    return 0.0 if metric.scale == "ratio" else -math.inf
