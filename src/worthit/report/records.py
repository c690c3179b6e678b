"""Records of what ships, as plain JSON types: the answers of `worthit list` and `worthit explain`.

Names and numbers come from the shipped files and from the catalogue; nothing is computed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worthit.techniques import Technique, catalogue

if TYPE_CHECKING:
    from worthit.judge.judge import Judgement

Record = dict[str, Any]


def models() -> list[Record]:
    """Every model that ships."""
    from worthit.spec._shipped import preset_entry, preset_names

    keys = ("id", "name", "aliases", "counted_params", "model_type", "source", "date")
    entries = [preset_entry(name) for name in preset_names()]
    return [
        _picked(e | {"model_type": e.get("config", {}).get("model_type")}, keys) for e in entries
    ]


def devices() -> list[Record]:
    """Every device that ships, with its peaks."""
    from worthit.spec._shipped import device_names, load_device
    from worthit.spec.codec import to_json

    return [to_json(load_device(name)) for name in device_names()]


def workloads() -> list[Record]:
    """Every workload that ships."""
    from worthit.spec._shipped import workload_entry, workload_names

    return [workload_entry(name) for name in workload_names()]


def techniques() -> list[Record]:
    """Every technique of the catalogue."""
    return [technique_json(t) for t in catalogue().values()]


def experiments() -> list[Record]:
    """Every experiment, with the state of its newest result."""
    from worthit.scorecard.experiments import experiments as found
    from worthit.scorecard.results import newest

    results = newest()
    return [
        {
            "id": entry.id,
            "technique": entry.technique,
            "title": entry.title,
            "measured": results[entry.id]["state"] if entry.id in results else "not yet",
        }
        for entry in found().values()
    ]


def technique_json(t: Technique) -> Record:
    """One technique's record, without its functions."""
    return {
        "id": t.id,
        "name": t.name,
        "family": t.family,
        "relieves": list(t.relieves),
        "bottleneck": t.bottleneck,
        "adoption": t.adoption,
        "cost_of_adoption": t.cost_of_adoption,
        "nothing_when": t.nothing_when,
        "pitfalls": list(t.pitfalls),
        "metric": t.metric,
        "orientation": dict(t.orientation),
        "diagram": [{"change": change_of(step), "text": text_of(step)} for step in t.diagram],
        "quality": [{"claim": e.claim, "source": str(e.source)} for e in t.evidence],
        "sources": [str(source) for source in t.sources],
        "module": t.module,
        "parity": list(t.parity),
        "experiment": t.experiment,
    }


CHANGES = {"+": "added", "-": "removed", "~": "changed"}


def change_of(step: str) -> str:
    """What a technique does to one step of its diagram: added, removed, changed or same."""
    return CHANGES.get(step[:1], "same")


def text_of(step: str) -> str:
    """A step of a diagram without its mark."""
    return (step[1:] if step[:1] in CHANGES else step).strip()


def explain(t: Technique, judgement: Judgement | None = None) -> Record:
    """What `worthit explain` says: the technique, and its verdict on a case where one is given."""
    record: Record = {"schema": "worthit.explain/1", "technique": technique_json(t), "judge": None}
    if judgement is not None:
        record["judge"] = judgement.to_json()
    return record


def _picked(entry: Record, keys: tuple[str, ...]) -> Record:
    return {key: entry.get(key) for key in keys}
