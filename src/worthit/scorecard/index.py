"""The index of a folder of runs: derived from the folders, and made anew from them at any time."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from worthit.errors import InputError
from worthit.scorecard.results import INDEX, SCHEMA

Record = dict[str, Any]
SUMMARY = "summary.json"


def rebuild(home: Path) -> tuple[int, list[str]]:
    """Write the index of the runs below `home`; how many, and what was passed over and why.

    Raises:
        InputError: there is no such folder, or it may not be written.
    """
    if not home.is_dir():
        raise InputError(f"{home}: there are no runs; `worthit measure` makes the first")
    results, skipped = [], []
    for file in sorted(home.glob(f"*/*/{SUMMARY}")):
        try:
            record = json.loads(file.read_bytes())
        except (OSError, ValueError):
            skipped.append(f"{file} is damaged and was passed over; measuring again repairs it")
            continue
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            schema = record.get("schema") if isinstance(record, dict) else None
            skipped.append(f"{file} is of another version ({schema}) and was passed over")
            continue
        results.append(record)
    try:
        _write(home / INDEX, {"schema": "worthit.runs/1", "results": results})
    except OSError as error:
        raise InputError(f"{home / INDEX} cannot be written: {error.strerror}") from None
    return len(results), skipped


def _write(path: Path, data: Record) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, allow_nan=False)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
