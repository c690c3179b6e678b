"""Judge every technique on a case: what is its bottleneck, do I have it, what would it cost, so?

`judge(case)` evaluates the case and its neighbours once, then each technique's case and its
neighbours once, and reads verdict, interval and flip points off the ratio of the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worthit.cost.evaluate import Cost, evaluate
from worthit.cost.points import neighbourhood
from worthit.errors import CaseError, NotApplicable
from worthit.judge.bottleneck import TITLES, BoundBy, bottlenecks, percent, statement
from worthit.judge.verdict import (
    BECOMES,
    FLOOR,
    MAYBE,
    NO,
    THRESHOLD,
    YES,
    Decision,
    Flip,
    decide,
    flips,
    gain,
)
from worthit.judge.words import METRIC_NAMES, quantity
from worthit.spec.case import ADOPTIONS, Case, Training
from worthit.techniques import FAMILIES, UNSEEN, Technique, catalogue, technique

# The metric that each goal looks at; a technique may name its own.
GOAL_METRIC = {
    "latency": "s_per_token",
    "throughput": "s_per_token",
    "memory": "memory_bytes",
    "train-time": "train_total_s",
}


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What the cost model says: `ratio` is after / before, below 1 is better."""

    metric: str
    before: float
    after: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
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
    evidence: str = "predicted"
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
            "measured": None,
            "check_with": self.check_with,
        }


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A case, what binds in it, and the verdict on every technique."""

    case: Case
    cost: Cost
    bottlenecks: tuple[BoundBy, ...]
    verdicts: tuple[Verdict, ...]
    on_top_of: tuple[str, ...] = field(default=())

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
            "verdicts": [v.to_json() for v in self.verdicts],
        }


def judge(
    case: Case, *, only: Iterable[str] = (), on_top_of: Iterable[str] = ()
) -> dict[str, Any]:
    """Judge every technique on `case` and return the record; see `Judgement.to_json`."""
    return judge_case(case, only=only, on_top_of=on_top_of).to_json()


def judge_case(
    case: Case, *, only: Iterable[str] = (), on_top_of: Iterable[str] = ()
) -> Judgement:
    """Judge techniques on `case`.

    Args:
        case: the situation.
        only: ids or families to judge; all when empty.
        on_top_of: techniques that are applied first, in this order, so that the verdicts are about
            what they leave.

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
    chosen = select(only)
    points = neighbourhood(case)
    base = evaluate(case, points)
    verdicts = tuple(_judge_one(t, case, base) for t in chosen)
    return Judgement(
        case=base.case,
        cost=base,
        bottlenecks=tuple(bottlenecks(base)),
        verdicts=verdicts,
        on_top_of=stacked,
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


def _judge_one(t: Technique, case: Case, base: Cost) -> Verdict:
    points = base.points
    evidence = "calibrated" if case.hardware.device.efficiency.is_calibrated else "predicted"
    present = t.is_present(case)
    unseen = t.relieves[0] in UNSEEN
    try:
        if present and t.remove is None:
            return _in_place_without_number(t, evidence)
        changed = t.remove(case) if present and t.remove is not None else t.apply(case)
        other = evaluate(changed, points)
    except NotApplicable as error:
        return Verdict(
            technique=t,
            decision="never",
            reason=_sentence(str(error)),
            is_present=present,
            is_applicable=False,
            bottleneck=t.relieves[0],
            has_bottleneck=None if unseen else False,
            evidence=evidence,
        )
    before, after = (other, base) if present else (base, other)
    metric = t.metric or GOAL_METRIC[case.effective_goal]
    was, becomes = getattr(before, metric), getattr(after, metric)
    gained = gain(was, becomes)
    impossible = np.isinf(was if was.ndim == 1 else was[0])
    cause, share = _share(t, before)
    decision = decide(gained, share, impossible)
    predicted = Predicted(
        metric=metric,
        before=float(was[0] if was.ndim == 1 else was[0, 0]),
        after=float(becomes[0] if becomes.ndim == 1 else becomes[0, 0]),
        ratio=float(gained.ratio[0]),
        low=float(gained.low[0]),
        high=float(gained.high[0]),
    )
    reached = ADOPTIONS.index(t.adoption) <= ADOPTIONS.index(case.allowed_adoption)
    now = int(decision[0])
    nearest = flips(points, decision, (YES,) if now != YES else (NO, MAYBE))
    if now == YES:
        verdict: Decision = "apply"
        if not present and not reached:
            verdict = "defer"
            axis = "stage" if case.stage == "deployed" else "max_adoption"
            value = "design" if axis == "stage" else t.adoption
            nearest = [Flip(axis=axis, value=value, becomes="apply", factor=1.0)]
    elif now == MAYBE:
        verdict = "defer"
    elif nearest and (reached or present):
        verdict = "defer"
    else:
        verdict, nearest = "never", []
    if unseen and now == NO:
        verdict = _verdict_on_unseen(t, case, present, reached, predicted)
        nearest = []
    found = Verdict(
        technique=t,
        decision=verdict,
        reason="",
        is_present=present,
        bottleneck=cause,
        has_bottleneck=None if unseen else bool(share[0] >= FLOOR or impossible[0]),
        share=None if cause in UNSEEN else float(share[0]),
        ceiling=None if cause in UNSEEN else _ceiling(cause, float(share[0])),
        predicted=predicted,
        flips=tuple(nearest),
        evidence=evidence,
    )
    return _with_reason(found, case, reached, base)


def _share(t: Technique, before: Cost) -> tuple[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """The share of what a technique relieves, and the largest of its bottlenecks in this case.

    Shares of time add up; a share of memory, requests or context stands for itself.
    """
    seen = [name for name in t.relieves if name not in UNSEEN]
    if not seen:
        return t.relieves[0], np.zeros(before.points.n)
    shares = {name: np.nan_to_num(np.asarray(before.shares[name]), nan=0.0) for name in seen}
    zero = np.zeros(before.points.n)
    time = sum((s for n, s in shares.items() if TITLES[n][0] == "time"), zero)
    rest = [s for n, s in shares.items() if TITLES[n][0] != "time"]
    total = np.minimum(np.maximum.reduce([time, *rest]) if rest else time, 1.0)
    cause = max(seen, key=lambda name: float(shares[name][0]))
    return (cause if float(shares[cause][0]) > 0 else seen[0]), total


def _ceiling(cause: str, share: float) -> float | None:
    """The speed-up if the technique removed its bottleneck for free (Amdahl), for shares of time."""
    if TITLES[cause][0] != "time" or share >= 1:
        return None
    return 1 / (1 - share)


def _verdict_on_unseen(
    t: Technique, case: Case, present: bool, reached: bool, predicted: Predicted
) -> Decision:
    """Cost cannot see what the technique is for: it can only see what it takes."""
    if present:
        return "apply"
    hurts = predicted.low > 1 + THRESHOLD
    can_try = reached and (case.stage == "design" or isinstance(case.workload, Training))
    return "defer" if can_try and not hurts else "never"


def _in_place_without_number(t: Technique, evidence: str) -> Verdict:
    return Verdict(
        technique=t,
        decision="apply",
        reason="In place; what the model would be without it is not one well-defined case, so no "
        "number is given.",
        is_present=True,
        bottleneck=t.relieves[0],
        has_bottleneck=None,
        evidence=evidence,
    )


def _with_reason(v: Verdict, case: Case, reached: bool, base: Cost) -> Verdict:
    from dataclasses import replace

    from worthit.judge.reason import reason

    return replace(v, reason=reason(v, case, reached, base), check_with=_check(v, case))


def _check(v: Verdict, case: Case) -> str:
    """The command that puts this verdict to the test."""
    if v.technique.experiment is not None:
        return f"worthit measure {v.technique.id}"
    if case.hardware.device.efficiency.is_calibrated:
        return f"worthit explain {v.technique.id}"
    return "worthit calibrate"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else text + "."


__all__ = [
    "BECOMES",
    "METRIC_NAMES",
    "Judgement",
    "Predicted",
    "Verdict",
    "judge",
    "judge_case",
    "percent",
    "quantity",
    "select",
    "statement",
]
# Families in the order of the catalogue, for faces that group verdicts.
ORDER = FAMILIES
