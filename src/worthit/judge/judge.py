"""Judge every technique on a case: what is its bottleneck, do I have it, what would it cost, so?

`judge(case)` evaluates the case and its neighbours once, then each technique's case and its
neighbours once, and reads verdict, interval and flip points off the ratio of the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, replace
from typing import Any

import numpy as np

from worthit._record import record, value
from worthit.cost.bottleneck import TITLES, BoundBy, bottlenecks
from worthit.cost.clock import Array, Ints
from worthit.cost.evaluate import Cost, evaluate
from worthit.cost.layout import choose
from worthit.cost.points import Points, neighbourhood
from worthit.errors import CaseError, NotApplicable
from worthit.judge.preferences import PreferenceAdvice, advise, with_advice
from worthit.judge.reason import reason
from worthit.judge.verdict import (
    BECOMES,
    FLOOR,
    MAYBE,
    NO,
    THRESHOLD,
    YES,
    Decision,
    Flip,
    Gain,
    decide,
    flips,
    gain,
)
from worthit.scorecard.evidence import evidence_of, is_of
from worthit.spec.case import ADOPTIONS, Case, Training
from worthit.techniques import PAID_FOR, UNSEEN, Technique, catalogue, technique

IN_PLACE_WITHOUT_NUMBER = (
    "In place; what the model would be without it is not one well-defined case, so no number is "
    "given."
)
# The metric that each goal looks at; a technique may name its own.
GOAL_METRIC = {
    "latency": "s_per_token",
    "throughput": "s_per_token",
    "memory": "memory_bytes",
    "train-time": "train_total_s",
}


@record
class Predicted:
    """What the cost model says: `ratio` is after / before, below 1 is better."""

    metric: str
    before: float
    after: float
    ratio: float
    low: float
    high: float


@value
class CurvePoint:
    """One neighbour of the case on an axis: the gain there, and what would be decided."""

    value: float
    ratio: float
    low: float
    high: float
    becomes: Decision


@record
class Verdict:
    """One technique judged on one case; see docs/judge.md for every field."""

    technique: Technique
    decision: Decision
    reason: str
    is_present: bool = False
    is_applicable: bool = True
    bottleneck: str = ""
    has_bottleneck: bool | None = False
    share: float | None = None
    ceiling: float | None = None
    predicted: Predicted | None = None
    flips: tuple[Flip, ...] = ()
    curves: dict[str, tuple[CurvePoint, ...]] = field(default_factory=dict, repr=False)
    evidence: str = "predicted"
    measured: dict[str, Any] | None = None
    check_with: str = ""

    def to_json(self) -> dict[str, Any]:
        """The record of DESIGN's `judge`, with what this project adds to it."""
        t = self.technique
        flip = self.flips[0] if self.flips else None
        return {
            "technique": t.id,
            "name": t.name,
            "family": t.family,
            "verdict": self.decision,
            "status": "in place"
            if self.is_present
            else ("absent" if self.is_applicable else "not applicable"),
            "bottleneck": self.bottleneck,
            "bottleneck_sentence": t.bottleneck,
            "has_bottleneck": self.has_bottleneck,
            "share": self.share,
            "ceiling": self.ceiling,
            "predicted": None if self.predicted is None else vars(self.predicted) | {},
            "adoption": t.adoption,
            "cost_of_adoption": t.cost_of_adoption,
            "flip": None if flip is None else _flip_json(flip),
            "flips": [_flip_json(f) for f in self.flips],
            "reason": self.reason,
            "nothing_when": t.nothing_when,
            "quality": [{"claim": e.claim, "source": str(e.source)} for e in t.evidence],
            "sources": [str(s) for s in t.sources],
            "evidence": self.evidence,
            "measured": self.measured,
            "check_with": self.check_with,
        }


@record
class Judgement:
    """A case, what binds in it, and the verdict on every technique."""

    case: Case
    cost: Cost
    bottlenecks: tuple[BoundBy, ...]
    verdicts: tuple[Verdict, ...]
    on_top_of: tuple[str, ...] = field(default=())
    preferences: PreferenceAdvice | None = None

    def to_json(self) -> dict[str, Any]:
        """The record that `worthit judge --json` prints."""
        from worthit.cost.record import case_json, fit_json

        return {
            "schema": "worthit.judge/1",
            "case": case_json(self.case),
            "fit": fit_json(self.cost),
            "on_top_of": list(self.on_top_of),
            "warnings": list(self.case.warnings),
            "bottlenecks": [b.to_json() for b in self.bottlenecks],
            "threshold": THRESHOLD,
            "floor": FLOOR,
            "preferences": None if self.preferences is None else self.preferences.to_json(),
            "verdicts": [v.to_json() for v in self.verdicts],
        }


def judge(case: Case, *, only: Iterable[str] = (), on_top_of: Iterable[str] = ()) -> dict[str, Any]:
    """Judge every technique on `case` and return the record; see `Judgement.to_json`."""
    return judge_case(case, only=only, on_top_of=on_top_of).to_json()


def judge_case(
    case: Case,
    *,
    only: Iterable[str] = (),
    on_top_of: Iterable[str] = (),
    with_curves: bool = False,
) -> Judgement:
    """Judge techniques on `case`.

    Args:
        case: the situation.
        only: ids or families to judge; all when empty.
        on_top_of: techniques that are applied first, in this order, so that the verdicts are about
            what they leave.
        with_curves: keep the gain at every neighbour of the case, for plots.

    Raises:
        UnknownName: an id or family that does not exist.
        CaseError: a technique of `on_top_of` does not apply to the case.
    """
    stacked = tuple(on_top_of)
    for name in stacked:
        added = technique(name)
        try:
            case = added.apply(case)
        except NotApplicable as error:
            raise CaseError(f"--with {name}: {error}") from None
    # With the layout decided, splitting over devices is in place and can be judged too.
    case = choose(case)
    chosen = select(only)
    points = neighbourhood(case)
    base = evaluate(case, points)
    binding = tuple(bottlenecks(base))
    advice = advise(case.data)
    judged = (
        with_advice(_judge_one(t, case, base, binding, with_curves), advice, case) for t in chosen
    )
    seen = evidence_of(chosen)
    verdicts = tuple(_with_evidence(v, base.case, seen.get(v.technique.id)) for v in judged)
    return Judgement(
        case=base.case,
        cost=base,
        bottlenecks=binding,
        verdicts=verdicts,
        on_top_of=stacked,
        preferences=advice,
    )


def select(only: Iterable[str]) -> tuple[Technique, ...]:
    """The techniques named by ids or families, in catalogue order; all when none is named."""
    wanted = tuple(only)
    known = catalogue()
    families = {t.family for t in known.values()}
    for name in wanted:
        if name not in families:
            technique(name)
    return tuple(t for t in known.values() if not wanted or {t.id, t.family} & set(wanted))


def _with_evidence(v: Verdict, case: Case, seen: dict[str, Any] | None) -> Verdict:
    """`v` with what an experiment measured, which changes none of its numbers.

    It stands behind the verdict only where it is of this very model on this very hardware.
    """
    if seen is None:
        return v
    is_here = is_of(seen, case.model.name, case.hardware.device.name)
    return replace(v, measured=seen, evidence="measured" if is_here else v.evidence)


@value
class _Comparison:
    """The case without a technique against the case with it, at every point."""

    metric: str
    predicted: Predicted
    gained: Gain
    cause: str
    share: Array
    decision: Ints
    was_impossible: bool

    @property
    def now(self) -> int:
        """The decision for the case itself."""
        return int(self.decision[0])


def _judge_one(
    t: Technique, case: Case, base: Cost, binding: tuple[BoundBy, ...], with_curves: bool
) -> Verdict:
    """Judge one technique: the case without it against the case with it."""
    present = t.is_present(case)
    unseen = t.relieves[0] in UNSEEN
    blank = Verdict(
        technique=t,
        decision="never",
        reason="",
        is_present=present,
        bottleneck=t.relieves[0],
        has_bottleneck=None,
        evidence="calibrated" if case.hardware.device.efficiency.is_calibrated else "predicted",
    )
    if present and t.remove is None:
        return replace(blank, decision="apply", reason=IN_PLACE_WITHOUT_NUMBER)
    try:
        changed = t.remove(case) if present and t.remove is not None else t.apply(case)
        other = evaluate(changed, base.points)
    except NotApplicable as error:
        found = None if unseen else False
        text = _sentence(str(error), t.id)
        return replace(blank, reason=text, is_applicable=False, has_bottleneck=found)
    before, after = (other, base) if present else (base, other)
    c = _compare(t, case, before, after, is_present=present)
    reached = ADOPTIONS.index(t.adoption) <= ADOPTIONS.index(case.allowed_adoption)
    # A longer sequence than the model knows is another case, unless that is what is judged.
    reachable = base.context_shortfall <= base.context_shortfall[0]
    nearest = flips(base.points, c.decision, reachable | (c.metric == "context_shortfall"))
    if unseen and (c.now == NO or present):
        verdict, nearest = _verdict_on_unseen(t, case, present, reached, c.predicted), []
    else:
        verdict, nearest = _verdict(t, case, c.now, nearest, is_free=present or reached)
        if verdict == "apply" and c.was_impossible and not present and _changes_model(t):
            # Another model that fits is no answer while the same one might be made to fit.
            verdict = "defer"
    share = None if c.cause in UNSEEN else float(c.share[0])
    judged = replace(
        blank,
        decision=verdict,
        bottleneck=c.cause,
        has_bottleneck=None if unseen else bool(c.share[0] >= FLOOR or c.was_impossible),
        share=share,
        ceiling=None if share is None else _ceiling(c.cause, share),
        predicted=c.predicted,
        flips=tuple(nearest),
        curves=_curves(base.points, c.gained, c.decision) if with_curves else {},
        check_with=_check(t, case),
    )
    return replace(judged, reason=reason(judged, case, reached, binding))


def _compare(
    t: Technique, case: Case, before: Cost, after: Cost, *, is_present: bool
) -> _Comparison:
    """Gain, share of the bottleneck and decision of one technique, on its metric."""
    metric = GOAL_METRIC[case.effective_goal]
    if t.metric is not None and hasattr(type(before), t.metric):
        metric = t.metric
    was, becomes = getattr(before, metric), getattr(after, metric)
    gained = gain(was, becomes)
    mid = was if was.ndim == 1 else was[0]
    impossible = np.isinf(mid)
    cause, share = _share(t, before, metric)
    return _Comparison(
        metric=metric,
        predicted=Predicted(
            metric=metric,
            before=float(mid[0]),
            after=float(becomes[0] if becomes.ndim == 1 else becomes[0, 0]),
            ratio=float(gained.ratio[0]),
            low=float(gained.low[0]),
            high=float(gained.high[0]),
        ),
        gained=gained,
        cause=cause,
        share=share,
        decision=decide(gained, share, impossible, is_present=is_present),
        was_impossible=bool(impossible[0]),
    )


def _changes_model(t: Technique) -> bool:
    """Whether the technique gives another model to train, not the same one run differently."""
    return ADOPTIONS.index(t.adoption) > ADOPTIONS.index("calibrate")


def _verdict(
    t: Technique, case: Case, now: int, nearest: list[Flip], *, is_free: bool
) -> tuple[Decision, list[Flip]]:
    """The decision and what would change it; `is_free` where no forbidden step stands between."""
    if now == YES and is_free:
        return "apply", nearest
    if now == YES:
        axis = "stage" if case.stage == "deployed" else "max_adoption"
        value = "design" if axis == "stage" else t.adoption
        return "defer", [Flip(axis=axis, value=value, becomes="apply", factor=1.0)]
    if now == MAYBE or (nearest and is_free):
        return "defer", nearest
    return "never", []


def _curves(
    points: Points, gained: Gain, decision: np.ndarray[Any, np.dtype[np.int64]]
) -> dict[str, tuple[CurvePoint, ...]]:
    """The gain along each axis, the case included, in increasing order of the axis."""
    axes = dict.fromkeys(points.axis[1:])
    curves = {}
    for axis in axes:
        rows = {
            value: CurvePoint(
                value=value,
                ratio=float(gained.ratio[i]),
                low=float(gained.low[i]),
                high=float(gained.high[i]),
                becomes=BECOMES[int(decision[i])],
            )
            for i, name in enumerate(points.axis)
            if name in (axis, "case")
            for value in [points.value_of_case(axis) if i == 0 else points.value(i)]
        }
        curves[axis] = tuple(rows[value] for value in sorted(rows))
    return curves


def _share(
    t: Technique, before: Cost, metric: str
) -> tuple[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """The share of what a technique relieves, and the largest of its bottlenecks in this case.

    Shares of time add up; a share of memory, requests or context stands for itself.
    """
    seen = [name for name in t.relieves if name not in UNSEEN]
    if not seen:
        return t.relieves[0], np.zeros(before.points.n)
    all_shares = before.shares_of(metric)
    shares = {name: np.nan_to_num(np.asarray(all_shares[name]), nan=0.0) for name in seen}
    zero = np.zeros(before.points.n)
    time = sum((s for n, s in shares.items() if TITLES[n][0] == "time"), zero)
    rest = [s for n, s in shares.items() if TITLES[n][0] != "time"]
    total = np.minimum(np.maximum.reduce([time, *rest]) if rest else time, 1.0)
    cause = max(seen, key=lambda name: float(shares[name][0]))
    return (cause if float(shares[cause][0]) > 0 else seen[0]), total


def _ceiling(cause: str, share: float) -> float | None:
    """The speed-up if the bottleneck went away for free (Amdahl), for shares of time."""
    if TITLES[cause][0] != "time" or share >= 1:
        return None
    return 1 / (1 - share)


def _verdict_on_unseen(
    t: Technique, case: Case, present: bool, reached: bool, predicted: Predicted
) -> Decision:
    """Cost cannot see what the technique is for: it can only see what it takes."""
    if present:
        return "apply"
    if t.relieves[0] in PAID_FOR:
        return "defer" if reached and np.isfinite(predicted.after) else "never"
    hurts = predicted.low > 1 + THRESHOLD
    trains = case.stage == "design" or isinstance(case.workload, Training)
    can_try = reached and (trains or not _changes_model(t))
    return "defer" if can_try and not hurts else "never"


def _check(t: Technique, case: Case) -> str:
    """The command that puts this verdict to the test."""
    if t.experiment is not None:
        return f"worthit measure {t.id}"
    if case.hardware.device.efficiency.is_calibrated:
        return f"worthit explain {t.id}"
    return "worthit calibrate"


def _flip_json(flip: Flip) -> dict[str, Any]:
    return {
        "axis": flip.axis,
        "value": flip.value,
        "becomes": flip.becomes,
        "factor": flip.factor,
    }


def _sentence(text: str, name: str) -> str:
    """`text` as a sentence; an id at its start stays as people type it."""
    if not text.startswith(name):
        text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else text + "."
