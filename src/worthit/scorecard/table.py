"""The scorecard: every technique, claimed beside predicted beside measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worthit.scorecard.results import newest
from worthit.scorecard.words import effect_number
from worthit.techniques import Technique, catalogue

Record = dict[str, Any]
NOT_YET = "not measured yet"


def scorecard(home: Path | None = None, *, with_own: bool = True) -> Record:
    """One row a technique, measured or not; see `worthit.scorecard.results.newest`.

    `others` of a row are the rows of the technique's further experiments that were measured.
    """
    found = newest(home=home, with_own=with_own)
    rows = []
    for t in catalogue().values():
        ident = experiment_id(t)
        mine = [r for name, r in found.items() if r["technique"] == t.id or name == ident]
        mine.sort(key=lambda r: (r["experiment"] == ident, r["date"]), reverse=True)
        first, *others = [row(t, result) for result in mine or (None,)]
        rows.append(first | {"others": others})
    states = [r["state"] for r in rows]
    return {
        "schema": "worthit.scorecard/1",
        "n_techniques": len(rows),
        "n_measured": sum(state is not None for state in states),
        "n_confirmed": states.count("confirmed"),
        "n_refuted": states.count("refuted"),
        "n_inconclusive": states.count("inconclusive"),
        "rows": rows,
    }


def experiment_id(t: Technique) -> str | None:
    """The id of a technique's experiment, from its dotted path."""
    if t.experiment is None:
        return None
    return t.experiment.partition(":")[0].rpartition(".")[2].replace("_", "-")


def row(t: Technique, result: Record | None) -> Record:
    """A technique: claimed by its sources, predicted by cost, measured by an experiment."""
    claimed = [{"claim": e.claim, "source": str(e.source)} for e in t.evidence]
    ident = experiment_id(t)
    record: Record = {
        "technique": t.id,
        "name": t.name,
        "family": t.family,
        "claimed": claimed,
        "experiment": ident,
        "expected": None,
        "predicted": [],
        "measured": [],
        "agreement": None,
        "state": None,
        "worth_it": None,
        "means": NOT_YET,
        "budget": None,
        "n_seeds": None,
        "hardware": None,
        "date": None,
        "origin": None,
        "command": None if ident is None else f"worthit measure {t.id}",
    }
    if result is None:
        return record
    return record | {
        "experiment": result["experiment"],
        "expected": result["expectation"],
        "predicted": predicted_texts(result),
        "measured": result["verdict"],
        "agreement": agreement(result),
        "state": result["state"],
        "worth_it": result["worth_it"],
        "means": result["means"],
        "budget": result["budget"],
        "n_seeds": result["n_seeds"],
        "hardware": hardware(result),
        "date": result["date"][:10],
        "origin": result["origin"],
        "command": result["command"],
    }


def predicted_texts(result: Record) -> list[str]:
    """What cost said, a line a metric and arm; where it cannot see anything, that."""
    metrics = {e["metric"]: e for e in result["effects"]}
    lines = []
    for p in result["predicted"]:
        name = metrics.get(p["metric"], {}).get("name", p["metric"])
        said = p["basis"] if p["value"] is None else effect_number(p, metrics)
        lines.append(f"{p['arm']}: {name} {said}")
    return lines


def agreement(result: Record) -> str | None:
    """Of predictions with measurements: `3 of 4`; None where cost predicted nothing."""
    judged = [p["agreement"] for p in result["predicted"] if p["agreement"] in ("agrees", "off")]
    return f"{judged.count('agrees')} of {len(judged)}" if judged else None


def hardware(result: Record) -> str:
    """The machine of a result, in a few words."""
    env = result["environment"]
    return f"{env['cpu']}, {env['threads']} thread{'s' if env['threads'] > 1 else ''}"
