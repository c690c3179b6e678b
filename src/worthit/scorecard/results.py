"""Results that are kept: one JSON file an experiment, and the user's own runs beside them.

A result is the outcome of `worthit measure` without its curves: what was expected, predicted and
measured, on what, and the command that reproduces it. Nothing here is computed from anything else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from worthit.errors import WorthitError

Record = dict[str, Any]
HOME = Path(__file__).parent / "results"
SCHEMA = "worthit.result/1"
INDEX = "index.json"
# Beside a run of another budget, a smoke run shows nothing.
RANK = {"smoke": 0, "quick": 1, "full": 1}
KEPT = (
    "experiment",
    "technique",
    "question",
    "state",
    "verdict",
    "means",
    "worth_it",
    "expectation",
    "would_change",
    "predicted",
    "matched",
    "budget",
    "n_seeds",
    "seeds",
    "tokens",
    "seconds",
    "notes",
    "environment",
    "date",
    "command",
    "key",
)
KEPT_OF_CLAIM = ("statement", "state", "found", "metric", "arm", "against", "region", "measured")
KEPT_OF_EFFECT = (
    "metric",
    "name",
    "unit",
    "better",
    "margin",
    "scale",
    "arm",
    "against",
    "word",
    "text",
    "measured",
    "per_seed",
    "detectable",
)


def summary(outcome: Record) -> Record:
    """What is kept of an outcome."""
    arms = {
        ident: {
            "label": arm["label"],
            "model": arm["model"],
            "metrics": {m: found["measured"] for m, found in arm["metrics"].items()},
            "counts": arm["counts"],
            "learning_rate": None if arm["tuning"] is None else arm["tuning"]["best"],
            "grid": [] if arm["tuning"] is None else _grid(arm["tuning"]),
        }
        for ident, arm in outcome["arms"].items()
    }
    return {
        "schema": SCHEMA,
        **{key: outcome[key] for key in KEPT},
        "claims": [{key: c[key] for key in KEPT_OF_CLAIM} for c in outcome["claims"]],
        "effects": [{key: e[key] for key in KEPT_OF_EFFECT} for e in outcome["effects"]],
        "arms": arms,
    }


def _grid(tuning: Record) -> list[Record]:
    return [
        {"learning_rate": row["learning_rate"], "losses": row["losses"]}
        for row in tuning["results"]
    ]


def save(outcome: Record) -> str:
    """Keep an outcome in the scorecard of this checkout; returns the file.

    Raises:
        WorthitError: it cannot be written, as in an installation that is not one's own.
    """
    path = HOME / f"{outcome['experiment']}.json"
    text = json.dumps(rounded(summary(outcome)), indent=1, ensure_ascii=False, allow_nan=False)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise WorthitError(f"{path} could not be written: {error.strerror}") from None
    return str(path)


def rounded(record: Any) -> Any:
    """`record` with seven digits a number: more is noise, and makes diffs of it."""
    if isinstance(record, dict):
        return {key: rounded(value) for key, value in record.items()}
    if isinstance(record, list):
        return [rounded(value) for value in record]
    return float(f"{record:.7g}") if isinstance(record, float) else record


def committed(ids: Iterable[str] | None = None) -> dict[str, Record]:
    """Results that ship, by experiment; of `ids` alone where they are given."""
    files = sorted(HOME.glob("*.json")) if ids is None else [HOME / f"{i}.json" for i in ids]
    found = {}
    for file in files:
        try:
            record = json.loads(file.read_bytes())
        except FileNotFoundError:
            continue
        found[record["experiment"]] = record | {"origin": "committed"}
    return found


def runs_home() -> Path:
    """Where the user's runs are kept: the user's own data folder."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "worthit" / "runs"


def own(home: Path | None = None) -> list[Record]:
    """The user's own results, from the index of their runs; none where there is none."""
    try:
        found = json.loads(((home or runs_home()) / INDEX).read_bytes())
        entries = found["results"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [e | {"origin": "yours"} for e in entries if e.get("schema") == SCHEMA]


def newest(
    ids: Iterable[str] | None = None, home: Path | None = None, *, with_own: bool = True
) -> dict[str, Record]:
    """The result that stands for each experiment: the newest, but no smoke run above another.

    Args:
        ids: these experiments alone.
        home: where one's own runs are; the data folder by default.
        with_own: False for what ships alone.
    """
    wanted = None if ids is None else set(ids)
    best = committed(ids)
    for record in own(home) if with_own else ():
        name = record["experiment"]
        if wanted is not None and name not in wanted:
            continue
        if name not in best or _rank(record) > _rank(best[name]):
            best[name] = record
    return best


def _rank(record: Record) -> tuple[int, str]:
    return RANK.get(record["budget"], 0), record["date"]
