"""What came out, as one record: what was expected, predicted and measured, and what that decides.

The record is plain JSON: what `worthit measure --json` prints, what the run's folder keeps, what
the report draws and what the scorecard is made of. Nothing in it is recomputed by those.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from worthit.lab.claims import amount
from worthit.lab.context import Setting
from worthit.lab.experiment import Prediction
from worthit.lab.matching import wall_time
from worthit.lab.reading import (
    Comparison,
    Effect,
    Reading,
    Values,
    compare,
    effect,
    has,
    read_claims,
    state_of_all,
)
from worthit.lab.statistics import Interval
from worthit.lab.wording import claim_text, edge_text, effect_text, value_text

SCHEMA = "worthit.outcome/1"
Record = dict[str, Any]
# Seeds that nobody is going to run: beyond them the margin is named as out of reach.
MANY_SEEDS = 200


def make_outcome(
    setting: Setting,
    cells: Mapping[str, Mapping[int, Record]],
    *,
    predictions: Sequence[Prediction],
    counted: Mapping[str, Mapping[str, float]],
    matched: Sequence[Record],
    tuning: Mapping[str, Record],
    environment: Record,
    command: str,
    date: str,
    key: str,
    folder: str,
) -> Record:
    """The outcome of `cells`, by arm and seed.

    Raises:
        WorthitError: a cell lacks a metric of the experiment.
    """
    e = setting.experiment
    values: Values = {
        arm: {seed: cell["values"] for seed, cell in by_seed.items()}
        for arm, by_seed in cells.items()
    }
    steps = {
        arm: statistics.median(found["step_s"] for found in by_seed.values())
        for arm, by_seed in values.items()
        if all("step_s" in found for found in by_seed.values())
    }
    matched = [*matched, *wall_time(setting, steps)]
    readings = read_claims(e, values)
    effects = [
        effect(values, m, arm.id, e.baseline.id)
        for arm in e.variants
        for m in e.metrics
        # The first metric is what the verdict is about: without it there is none.
        if m is e.metrics[0] or has(values, m, arm.id, e.baseline.id)
    ]
    compared = compare(e, predictions, values)
    state = state_of_all(readings)
    seeds = sorted(next(iter(values.values())))
    return {
        "schema": SCHEMA,
        "experiment": e.id,
        "technique": e.technique,
        "question": e.question,
        "state": state,
        "verdict": verdict(setting, effects),
        "means": meaning(setting, state, readings),
        "would_change": [would_change(reading) for reading in readings],
        "expectation": {
            "statement": e.expectation.statement,
            "source": str(e.expectation.source),
            "refuted_if": e.expectation.refuted_if,
            "worth_it": e.expectation.worth_it,
        },
        "worth_it": worth_it(effects),
        "claims": [_claim(reading) for reading in readings],
        "effects": [_effect(found) for found in effects],
        "predicted": [_comparison(found, e.gaps) for found in compared],
        "arms": {
            arm.id: {
                "label": arm.label,
                "is_baseline": arm is e.baseline,
                "model": setting.specs[arm.id].name if arm.id in setting.specs else None,
                "counts": dict(counted.get(arm.id, {})),
                "tuning": tuning.get(arm.id),
                "metrics": {
                    m.id: _value(effect(values, m, arm.id, None))
                    for m in e.metrics
                    if has(values, m, arm.id)
                },
                "curves": _curves(cells[arm.id]),
                "spread": _spreads(cells[arm.id]),
            }
            for arm in e.arms
        },
        "matched": {"because": e.matched.because, "checks": list(matched)},
        "budget": setting.budget_name,
        "n_seeds": len(seeds),
        "seeds": seeds,
        "tokens": setting.tokens,
        "seconds": sum(c.get("seconds", 0.0) for by in cells.values() for c in by.values()),
        "notes": notes(setting, readings, tuning, cells, matched),
        "environment": environment,
        "date": date,
        "command": command,
        "key": key,
        "folder": folder,
    }


def verdict(setting: Setting, effects: Sequence[Effect]) -> list[str]:
    """One line a variant: its effect on every metric, the first metric first."""
    labels = {arm.id: arm.label for arm in setting.experiment.arms}
    lines = []
    for arm in setting.experiment.variants:
        mine = [found for found in effects if found.arm == arm.id]
        parts = [effect_text(found, labels[arm.id]).partition(": ")[2] for found in mine]
        lines.append(f"{labels[arm.id]}: {'; '.join(parts)}")
    return lines


def worth_it(effects: Sequence[Effect]) -> dict[str, str]:
    """What each variant does to the first metric: better, worse, same, ... or unclear."""
    first = effects[0].metric
    return {found.arm: found.word for found in effects if found.metric is first}


def meaning(setting: Setting, state: str, readings: Sequence[Reading]) -> str:
    """The outcome in one sentence: the experiment's own, or what the claims say."""
    own = setting.experiment.means.get(state)
    if own:
        return own
    if state == "inconclusive":
        open_ = [r.claim.statement for r in readings if r.state == "inconclusive"]
        return f"Too few seeds, or too small an effect, to tell: {'; '.join(open_)}."
    if state == "refuted":
        wrong = [r.claim.statement for r in readings if r.state == "refuted"]
        return f"Not as expected: it does not hold that {'; '.join(wrong)}."
    return f"As expected: {setting.experiment.expectation.statement}"


def would_change(reading: Reading) -> Record:
    """What would have decided a claim otherwise: where its edge is, and what it takes to see it."""
    claim, found = reading.claim, reading.effect
    estimate = found.interval.estimate
    edges = [edge for edge in (claim.low, claim.high) if math.isfinite(edge)]
    if found.is_ratio:
        edges = [edge for edge in edges if edge > 0]
    nearest = min(edges, key=lambda edge: abs(edge - estimate)) if edges else None
    record: Record = {
        "claim": claim.statement,
        "edge": nearest,
        "detectable": found.detectable if math.isfinite(found.detectable) else None,
        "seeds_needed": None,
    }
    if reading.state != "inconclusive":
        record["text"] = (
            f"an effect that is not {edge_text(claim)}"
            if reading.state == "confirmed"
            else f"an effect {edge_text(claim)}"
        )
        return record
    if nearest is None:
        record["text"] = "more seeds"
        return record
    gap = abs(math.expm1(math.log(nearest / estimate))) if found.is_ratio else nearest - estimate
    record["seeds_needed"] = needed = found.seeds_for(abs(gap))
    seen = found.detectable
    limit = (
        f"with {len(found.seeds)} seeds an effect of {amount(claim.metric, _round(seen))} would "
        "have been seen"
        if math.isfinite(seen)
        else "one seed shows no effect of any size"
    )
    more = (
        f"; about {needed} would settle it if the effect is what it looks like: --seeds {needed}"
        if needed is not None and needed <= MANY_SEEDS
        else "; the effect stands too close to the margin for any sensible number of seeds"
    )
    record["text"] = limit + (more if math.isfinite(seen) else ": --seeds 5")
    return record


def notes(
    setting: Setting,
    readings: Sequence[Reading],
    tuning: Mapping[str, Record],
    cells: Mapping[str, Mapping[int, Record]],
    matched: Sequence[Record],
) -> list[str]:
    """What a careful reader has to know beside the numbers."""
    found = [
        f"{row['what']} differs by {100 * row['spread']:.2g} %, more than the "
        f"{100 * row['within']:g} % that were meant: the arms had unequal means"
        for row in matched
        if not row["is_matched"]
    ]
    for arm, record in tuning.items():
        if record["is_edge"]:
            found.append(
                f"{arm}: the best learning rate, {record['best']:g}, is at the edge of its grid: "
                "it may be tuned badly"
            )
        elif not record["is_tuned"]:
            found.append(f"{arm}: one learning rate, {record['best']:g}, so nothing was tuned")
    for arm, by_seed in cells.items():
        lost = [seed for seed, cell in by_seed.items() if cell["values"].get("diverged")]
        if lost:
            found.append(f"{arm}: {len(lost)} of {len(by_seed)} seeds diverged")
    found += [
        f"{reading.claim.statement}: t and bootstrap disagree, so the seeds are not as the t "
        "interval takes them to be; read the single seeds"
        for reading in readings
        if reading.is_contradicted
    ]
    commits = {
        ((cell.get("environment") or {}).get("git") or {}).get("commit")
        for by_seed in cells.values()
        for cell in by_seed.values()
    }
    if len(commits) > 1:
        found.append(f"cells of {len(commits)} commits of worthit stand in this outcome")
    if setting.budget_name == "smoke":
        found.append("a smoke budget shows that the experiment runs; `--budget quick` decides")
    return found


# --- JSON ----------------------------------------------------------------------------------------


def interval_json(found: Interval) -> Record:
    """An interval; null where it is open."""
    return {
        "estimate": found.estimate,
        "low": found.low if math.isfinite(found.low) else None,
        "high": found.high if math.isfinite(found.high) else None,
        "level": found.level,
        "n": found.n,
        "method": found.method,
    }


def _claim(reading: Reading) -> Record:
    claim = reading.claim
    return {
        "statement": claim.statement,
        "state": reading.state,
        "found": claim_text(reading),
        "metric": claim.metric.id,
        "arm": claim.arm,
        "against": reading.effect.against,
        "region": {
            "low": claim.low if math.isfinite(claim.low) else None,
            "high": claim.high if math.isfinite(claim.high) else None,
            "text": edge_text(claim),
        },
        "measured": interval_json(reading.effect.interval),
        "bootstrap": interval_json(reading.effect.bootstrap),
        "p": reading.p,
    }


def _effect(found: Effect) -> Record:
    metric = found.metric
    return {
        "metric": metric.id,
        "name": metric.name,
        "unit": metric.unit,
        "better": metric.better,
        "margin": metric.margin,
        "scale": metric.scale,
        "arm": found.arm,
        "against": found.against,
        "word": found.word,
        "text": effect_text(found, found.arm),
        "measured": interval_json(found.interval),
        "bootstrap": interval_json(found.bootstrap),
        "per_seed": list(found.per_seed),
        "seeds": list(found.seeds),
        "sd": found.sd,
        "detectable": found.detectable if math.isfinite(found.detectable) else None,
    }


def _value(found: Effect) -> Record:
    return {
        "text": value_text(found.interval, found.metric),
        "measured": interval_json(found.interval),
        "by_seed": {str(seed): v for seed, v in zip(found.seeds, found.per_seed, strict=True)},
    }


def _comparison(found: Comparison, gaps: Mapping[str, str]) -> Record:
    p = found.prediction
    return {
        "metric": p.metric,
        "arm": p.arm,
        "is_value": p.is_value,
        "value": _known(p.value),
        "low": _known(p.low),
        "high": _known(p.high),
        "basis": p.basis,
        "measured": None if found.measured is None else interval_json(found.measured),
        "agreement": found.agreement,
        "off_by": found.off_by,
        "gap": gaps.get(p.metric) if found.agreement == "off" else None,
    }


def _curves(cells: Mapping[int, Record]) -> Record:
    names = dict.fromkeys(name for cell in cells.values() for name in cell.get("curves", {}))
    return {
        name: {
            str(seed): cell["curves"][name]
            for seed, cell in cells.items()
            if name in cell.get("curves", {})
        }
        for name in names
    }


def _spreads(cells: Mapping[int, Record]) -> Record | None:
    """Timing: the 20th and 80th percentile of each seed's turns, and how many there were."""
    found: Record = {}
    for seed, cell in cells.items():
        for name, timed in {"seconds": cell, **cell.get("parts", {})}.items():
            if "spread" in timed:
                low, high = timed["spread"]
                found.setdefault(name, {})[str(seed)] = {"p20": low, "p80": high, "n": timed["n"]}
    return found or None


def _known(x: float | None) -> float | None:
    """A prediction of what does not fit is infinite, and no number."""
    return x if x is None or math.isfinite(x) else None


def _round(x: float) -> float:
    return float(f"{x:.2g}")
