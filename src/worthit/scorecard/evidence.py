"""What was measured of a technique, in the few fields that a verdict shows beside itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from worthit.scorecard.results import newest
from worthit.scorecard.table import experiment_id, hardware
from worthit.techniques import Technique

Record = dict[str, Any]


def evidence_of(techniques: Iterable[Technique]) -> dict[str, Record]:
    """The result that stands for each technique that has one, by technique."""
    idents = {t.id: experiment_id(t) for t in techniques}
    results = newest([ident for ident in idents.values() if ident is not None])
    return {
        name: _evidence(results[ident])
        for name, ident in idents.items()
        if ident is not None and ident in results
    }


def _evidence(result: Record) -> Record:
    baseline = next(iter(result["arms"].values()))
    return {
        "experiment": result["experiment"],
        "model": baseline["model"],
        "state": result["state"],
        "verdict": result["verdict"],
        "worth_it": result["worth_it"],
        "means": result["means"],
        "budget": result["budget"],
        "n_seeds": result["n_seeds"],
        "cpu": result["environment"]["cpu"],
        "hardware": hardware(result),
        "date": result["date"][:10],
        "origin": result["origin"],
        "command": result["command"],
    }


def is_of(evidence: Record | None, model: str, device: str) -> bool:
    """Whether it was measured with this very model on this very hardware."""
    return evidence is not None and evidence["model"] == model and evidence["cpu"] == device


def sentence(evidence: Record) -> str:
    """One sentence: what came out, of what, on what, when."""
    said = "; ".join(evidence["verdict"])
    where = f"{evidence['model'] or 'no model'} on {evidence['hardware']}, {evidence['date']}"
    return f"{said} ({where}, {evidence['budget']}, {evidence['n_seeds']} seeds)"
