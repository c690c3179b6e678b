"""Why: the sentence a specialist would say, made of the numbers that decided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from worthit.cost.bottleneck import TITLES, BoundBy, percent, statement
from worthit.judge.verdict import FLOOR, KEPT, THRESHOLD
from worthit.judge.words import METRIC_NAMES, quantity, speedup
from worthit.spec.case import Case, Training

if TYPE_CHECKING:
    from worthit.judge.judge import Predicted, Verdict


def reason(v: Verdict, case: Case, reached: bool, binding: Sequence[BoundBy]) -> str:
    """One or two sentences: the share, the gain with its interval, and what stands in the way."""
    if v.has_bottleneck is None:
        return _unseen(v, case, reached)
    assert v.share is not None
    parts = [_share_sentence(v)]
    p = v.predicted
    assert p is not None
    if p.before == p.after == float("inf"):
        parts.append(_gain_sentence(v))
    elif v.is_present and abs(p.ratio - 1) <= KEPT:
        parts.append("In place, it neither helps nor costs anything here.")
    elif v.decision == "apply":
        parts.append(_gain_sentence(v))
    elif not v.has_bottleneck:
        parts.append(_absent(v, binding))
    else:
        parts.append(_gain_sentence(v))
        parts.append(_obstacle(v, case, reached))
    return " ".join(p for p in parts if p)


def _share_sentence(v: Verdict) -> str:
    assert v.share is not None
    text = statement(v.bottleneck, v.share, "" if v.predicted is None else v.predicted.metric)
    where = "without it, " if v.is_present else ""
    text = where + text
    return text[:1].upper() + text[1:] + "."


def _gain_sentence(v: Verdict) -> str:
    p = v.predicted
    assert p is not None
    if p.before == p.after == float("inf"):
        return (
            "The case does not fit, with it or without it: judge again on top of what makes it fit "
            "(--with)."
        )
    if p.before == float("inf"):
        return f"It makes the case fit: {quantity(p.metric, p.after)} {METRIC_NAMES[p.metric]}."
    if p.after == float("inf"):
        return "With it the case no longer fits."
    verb = "keeps" if v.is_present else "takes"
    if v.is_present:
        change = f"{quantity(p.metric, p.after)} instead of {quantity(p.metric, p.before)}"
    else:
        change = f"from {quantity(p.metric, p.before)} to {quantity(p.metric, p.after)}"
    return (
        f"It {verb} {METRIC_NAMES[p.metric]} {'at ' if v.is_present else ''}{change}: "
        f"{speedup(p.ratio)} [{speedup(p.high)}, {speedup(p.low)}]."
    )


def _absent(v: Verdict, binding: Sequence[BoundBy]) -> str:
    """The bottleneck is not there: how little there is to win, and where the time goes instead."""
    p = v.predicted
    assert p is not None
    if v.ceiling is None:
        first = f"Below {percent(FLOOR)} there is nothing to relieve"
    elif p.ratio < (1 - THRESHOLD) and 1 / p.ratio > 1.05 * v.ceiling:
        first = (
            f"The {speedup(p.ratio)} that it would give comes from fewer or cheaper operations, "
            "not from the bottleneck it was made for"
        )
    else:
        first = f"Even for free it could win at most {max(v.ceiling, 1):.3g}x"
    if p.before == p.after == float("inf"):
        first += ", and the case does not fit either way"
    elif p.after == float("inf"):
        first += ", and with it the case no longer fits"
    elif p.ratio > 1.005:
        first += f", and it costs {percent(p.ratio - 1)} more {METRIC_NAMES[p.metric]}"
    others = [b for b in binding if b.id != v.bottleneck and TITLES[b.id][0] == "time"]
    where = f"; here {others[0].statement}" if others else ""
    return first + where + "."


def _obstacle(v: Verdict, case: Case, reached: bool) -> str:
    p = v.predicted
    assert p is not None
    if p.before == float("inf") and p.after != float("inf") and reached:
        return "That is another model: see first what makes this one fit."
    if p.high <= 1 - THRESHOLD and not reached:
        return (
            f"It takes {_adoption(v)}, and at stage {case.stage!r} the furthest step is "
            f"{case.allowed_adoption!r}."
        )
    if p.low > 1:
        return "It makes things worse."
    if p.low <= 1 - THRESHOLD < p.high:
        return f"The interval straddles the threshold of {percent(THRESHOLD)}."
    return f"That does not clear the threshold of {percent(THRESHOLD)}."


def _adoption(v: Verdict) -> str:
    return {
        "drop-in": "nothing but a switch",
        "calibrate": "a calibration",
        "finetune": "finetuning",
        "retrain": "training again",
    }[v.technique.adoption]


def _unseen(v: Verdict, case: Case, reached: bool) -> str:
    p = v.predicted
    assert p is not None
    price = _price(p)
    what = f"its purpose ({v.technique.relieves[0].replace('-', ' ')}) is not visible to cost"
    if v.is_present:
        return f"In place. {price}; {what}."
    if v.decision == "never" and not reached:
        return f"{price}; {what}, and it takes {_adoption(v)} of a model that exists."
    if v.decision == "never" and (case.stage == "design" or isinstance(case.workload, Training)):
        return f"{price}; {what}, and that price is above the threshold of {percent(THRESHOLD)}."
    if v.decision == "never":
        return f"{price}; {what}, and this case trains nothing."
    return f"{price}; {what}: only an experiment can tell."


def _price(p: Predicted) -> str:
    """What a technique for something unseen does to what is seen."""
    if p.before == p.after == float("inf"):
        return "The case does not fit, with it or without it"
    if p.before == float("inf"):
        return "It makes the case fit"
    if p.after == float("inf"):
        return "With it the case no longer fits"
    if abs(p.ratio - 1) < 0.005:
        return f"It leaves {METRIC_NAMES[p.metric]} as it is"
    if p.ratio < 0.001:
        return f"It saves nearly all {METRIC_NAMES[p.metric]}"
    word = "saves" if p.ratio < 1 else "costs"
    return f"It {word} {percent(abs(p.ratio - 1))} of {METRIC_NAMES[p.metric]}"
