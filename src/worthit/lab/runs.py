"""A run is a folder; a cell, one arm with one seed, is a folder in it.

    runs/<experiment>/<budget>-<key>/
        run.json                        the resolved configuration, environment, seeds, date
        metrics.jsonl                   what happened, one line an event, only ever appended to
        cells/<arm>/<seed>/result.json  a cell's numbers; the file is there when the cell is done
        cells/<arm>/<seed>/part-*.json  what was measured of it besides: speed
        cells/<arm>/tuning/<rate>.json  validation losses of one learning rate
        result.json, summary.json       the outcome, and what the scorecard keeps of it

Whatever stops a run, what is done stays done: the same command finds the folder by its key and does
what is missing. Files are written beside their place and moved there.
"""

from __future__ import annotations

import datetime
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worthit.errors import InputError, WorthitError
from worthit.lab.context import Setting
from worthit.lab.environment import FORMAT, config, environment, key_of
from worthit.lab.experiment import Measures
from worthit.lab.files import append_line, read_json, write_json
from worthit.scorecard.index import SUMMARY, rebuild
from worthit.scorecard.results import summary

Record = dict[str, Any]


class Run:
    """One run's folder."""

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder = folder
        self.record = record

    @property
    def key(self) -> str:
        """What its configuration hashes to."""
        key: str = self.record["key"]
        return key

    def cell(self, arm: str, seed: int) -> Record | None:
        """The numbers of a cell that is done."""
        found = read_json(self._cell_file(arm, seed))
        if not (isinstance(found, dict) and found.get("format") == FORMAT and "values" in found):
            return None
        for file in sorted(self._cell_file(arm, seed).parent.glob("part-*.json")):
            part = read_json(file)
            if isinstance(part, dict):
                found["values"] |= part["values"]
                found.setdefault("parts", {})[file.stem.removeprefix("part-")] = part
        return found

    def part(self, arm: str, seed: int, name: str) -> Record | None:
        """What was measured of a cell beside its run, such as its speed."""
        found = read_json(self._cell_file(arm, seed).parent / f"part-{name}.json")
        return found if isinstance(found, dict) and "values" in found else None

    def save_part(
        self, arm: str, seed: int, name: str, values: dict[str, float], **about: Any
    ) -> None:
        """Keep a part of a cell; its values join the cell's."""
        record = {"values": values, "date": now(), **about}
        write_json(self._cell_file(arm, seed).parent / f"part-{name}.json", record)
        self.log("part", arm=arm, seed=seed, part=name, values=values)

    def missing(self, arm: str, seeds: Sequence[int]) -> list[int]:
        """The seeds of an arm that are still to be run."""
        return [seed for seed in seeds if self.cell(arm, seed) is None]

    def save_cell(self, arm: str, seed: int, measures: Measures, **about: Any) -> None:
        """Keep a cell's metrics and curves; `about` is anything else worth keeping.

        Points of a curve that are no numbers are left out, as where training diverged.

        Raises:
            WorthitError: a metric is no number.
        """
        values = {k: float(v) for k, v in measures.items() if isinstance(v, (int, float))}
        curves = {
            name: [[float(x), float(y)] for x, y in points if math.isfinite(y)]
            for name, points in measures.items()
            if not isinstance(points, (int, float))
        }
        bad = [name for name, number in values.items() if not math.isfinite(number)]
        if bad:
            raise WorthitError(f"{arm}, seed {seed}: {', '.join(bad)} is not a number")
        record = {
            "format": FORMAT,
            "arm": arm,
            "seed": seed,
            "values": values,
            "curves": curves,
            "date": now(),
            "environment": self.record["environment"],
            **about,
        }
        write_json(self._cell_file(arm, seed), record)
        self.log("cell", arm=arm, seed=seed, values=values)

    def tuned(self, arm: str, rate: float) -> Record | None:
        """What is known of one learning rate of an arm."""
        found = read_json(self._tuning_file(arm, rate))
        return found if isinstance(found, dict) and "losses" in found else None

    def save_tuned(
        self, arm: str, rate: float, losses: Sequence[float | None], **about: Any
    ) -> None:
        """Keep the validation losses of one learning rate, one a tuning seed."""
        record = {"arm": arm, "learning_rate": rate, "losses": list(losses), **about}
        write_json(self._tuning_file(arm, rate), record)
        self.log("tuned", arm=arm, learning_rate=rate, losses=list(losses))

    def log(self, event: str, **data: Any) -> None:
        """Add a line to the metrics."""
        append_line(self.folder / "metrics.jsonl", {"time": time.time(), "event": event, **data})

    def scratch(self, *parts: str) -> Path:
        """A folder for checkpoints and files of a part of this run."""
        return self.folder.joinpath("scratch", *(_safe(part) for part in parts))

    def drop_scratch(self, *parts: str) -> None:
        """Forget what a part kept to be continued from: it is done."""
        shutil.rmtree(self.scratch(*parts), ignore_errors=True)

    def save_result(self, outcome: Record) -> None:
        """Keep the outcome, its summary, and the index of all runs that is made of those."""
        write_json(self.folder / "result.json", outcome)
        write_json(self.folder / SUMMARY, summary(outcome))
        rebuild(self.folder.parents[1])

    def _cell_file(self, arm: str, seed: int) -> Path:
        return self.folder / "cells" / _safe(arm) / str(seed) / "result.json"

    def _tuning_file(self, arm: str, rate: float) -> Path:
        return self.folder / "cells" / _safe(arm) / "tuning" / f"{rate:g}.json"


@contextmanager
def open_run(
    setting: Setting,
    *,
    home: Path,
    seeds: Sequence[int],
    n_threads: int,
    command: str = "",
    is_continued: bool = True,
) -> Iterator[Run]:
    """The run of `setting`, made or continued, held against a second process meanwhile.

    Where not `is_continued` its cells are forgotten; the log of what happened stays.

    Raises:
        InputError: the folder holds a run of another version, or another process is at it.
        WorthitError: it cannot be written.
    """
    found = config(setting, n_threads)
    key = key_of(found)
    folder = home / setting.experiment.id / f"{setting.budget_name}-{key}"
    old = read_json(folder / "run.json")
    if isinstance(old, dict) and old.get("format") != FORMAT:
        raise InputError(
            f"{folder} was written by another version of worthit (format {old.get('format')}, "
            f"here {FORMAT}); move it away or give another --out"
        )
    record = {
        "format": FORMAT,
        "key": key,
        "config": found,
        "environment": environment(n_threads),
        "seeds": list(seeds),
        "created": old["created"] if isinstance(old, dict) and "created" in old else now(),
        "continued": now(),
        "command": command,
    }
    write_json(folder / "run.json", record)
    with _only_one(folder):
        if not is_continued:
            for part in ("cells", "scratch"):
                shutil.rmtree(folder / part, ignore_errors=True)
        run = Run(folder, record)
        run.log("start", seeds=list(seeds), command=command)
        yield run


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # no such lock on Windows: two processes would do the same work twice
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"another process is running this very experiment in {folder}"
            ) from None
        yield


def now() -> str:
    """This moment, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_.+" else "_" for c in name)
