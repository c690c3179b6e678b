"""From a ratio with its interval to apply, defer or never, at every point at once.

The rules are those of docs/judge.md: the bottleneck must bind, the whole interval must clear the
threshold, the adoption must be within reach; a verdict that would change nearby is deferred.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from worthit._record import value
from worthit.cost.clock import FACTORS, Array, Bools, Ints
from worthit.cost.points import Points

Decision = Literal["apply", "defer", "never"]

# A gain below this is not worth a change; a bottleneck below this cannot yield it (Amdahl).
THRESHOLD = 0.10
FLOOR = 0.10

# What is in place needs no effort to keep: it stays unless it costs more than this.
KEPT = 0.005

NO, MAYBE, YES = 0, 1, 2
BECOMES: dict[int, Decision] = {NO: "never", MAYBE: "defer", YES: "apply"}


@value
class Gain:
    """cost(after) / cost(before) at every point: below 1 is better."""

    ratio: Array
    low: Array
    high: Array


@value
class Flip:
    """The nearest change of the case on one axis at which the verdict becomes another."""

    axis: str
    value: float | str
    becomes: Decision
    factor: float


def gain(before: Array, after: Array) -> Gain:
    """Ratio and interval of two costs.

    Args:
        before, after: `(scenarios, points)`, or `(points,)` where nothing is uncertain. Infinite
            where the case is impossible.

    Each factor's low and high scenario moves both costs together; the moves of different factors
    are independent and add in quadrature, in logarithms.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(np.isinf(after), np.inf, after / before)
        # Both impossible: nothing changes.
        ratio = np.where(np.isinf(before) & np.isinf(after), 1.0, ratio)
    if ratio.ndim == 1:
        return Gain(ratio=ratio, low=ratio, high=ratio)
    mid = ratio[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        moves = np.where(np.isfinite(mid) & (mid > 0), np.log(ratio[1:] / mid), 0.0)
    pairs = moves.reshape(len(FACTORS) + 1, 2, -1)
    up = np.sqrt((np.maximum(pairs.max(axis=1), 0) ** 2).sum(axis=0))
    down = np.sqrt((np.maximum(-pairs.min(axis=1), 0) ** 2).sum(axis=0))
    return Gain(ratio=mid, low=mid * np.exp(-down), high=mid * np.exp(up))


def decide(gained: Gain, share: Array, was_impossible: Bools, *, is_present: bool = False) -> Ints:
    """YES, MAYBE or NO at every point, adoption left aside.

    What is in place has no bottleneck to prove: the question is whether it hurts.
    """
    clear = 1 + KEPT if is_present else 1 - THRESHOLD
    decision = np.where(gained.high <= clear, YES, np.where(gained.low <= clear, MAYBE, NO))
    binds = is_present | (share >= FLOOR) | was_impossible
    return np.where(binds, decision, NO)


def flips(points: Points, decision: Ints, reachable: Bools) -> list[Flip]:
    """On each axis, the nearest point where the decision starts or ceases to be YES, nearest first.

    Points that are not `reachable` (beyond the trained context, say) are passed over.
    """
    found: dict[str, Flip] = {}
    is_flip = ((decision == YES) != (decision[0] == YES)) & reachable
    for i in points.nearest_first if is_flip.any() else ():
        axis = points.axis[i]
        if is_flip[i] and axis not in found:
            found[axis] = Flip(
                axis=axis,
                value=points.value(i),
                becomes=BECOMES[int(decision[i])],
                factor=float(points.factor[i]),
            )
    return list(found.values())
