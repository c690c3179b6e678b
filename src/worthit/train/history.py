"""What a run leaves behind: its losses and scores, in memory and as lines of JSON.

`metrics.jsonl` is only ever appended to: one line a logged update (`kind` step), an evaluation
(`eval`) or a resumption (`resume`). A process that is killed may leave half a line, and lines of
updates that its last checkpoint does not hold; `read_metrics` leaves both out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from worthit.errors import InputError, WorthitError

METRICS = "metrics.jsonl"


@dataclass
class History:
    """One run's course.

    Attributes:
        steps: one entry a logged update: `step` (from 1), `loss` of its batch before the update,
            `lr`, `grad_norm` before clipping, `tokens` seen so far, `elapsed_s`.
        evaluations: one entry an evaluation: `step`, then scores by name.
        n_tokens: tokens that the model has read in training.
        wall_s: seconds in the loop, over all resumptions. Runs that advance together share theirs.
        how: what ran it: alone, or together with which others, and why not where it could not.
        failure: why it stopped before its end; None where it did not.
    """

    seed: int
    steps: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    n_tokens: int = 0
    wall_s: float = 0.0
    how: str = "alone"
    failure: str | None = None

    @property
    def loss(self) -> float:
        """The last logged training loss; NaN where there is none."""
        return self.steps[-1]["loss"] if self.steps else math.nan

    @property
    def scores(self) -> dict[str, float]:
        """The scores of the last evaluation, without its step."""
        last = self.evaluations[-1] if self.evaluations else {}
        return {name: score for name, score in last.items() if name != "step"}

    def curve(self, name: str) -> list[tuple[int, float]]:
        """`(step, value)` of everything logged or evaluated under `name`."""
        entries = [*self.steps, *self.evaluations]
        return [(int(e["step"]), e[name]) for e in entries if name in e]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> History:
        """What `to_json` wrote."""
        return cls(**data)


class Metrics:
    """The file of a run's metrics, opened for each line: nothing is held open or kept back.

    Args:
        folder: None writes nothing.
        step: the update that the run continues from; 0 starts it.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        self.path = None if folder is None else folder / METRICS
        if self.path is None:
            return
        if self.path.exists() and self.path.stat().st_size:
            self._end_half_a_line()
            self.add("resume", {"step": step})

    def add(self, kind: str, values: Mapping[str, float]) -> None:
        """Append one line."""
        if self.path is None:
            return
        line = json.dumps({"kind": kind, **values})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise disk_error(self.path, error) from error

    def _end_half_a_line(self) -> None:
        assert self.path is not None
        with self.path.open("rb+") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, or of the one in a folder, in the order of updates.

    Raises:
        InputError: there is no such file.
    """
    path = path / METRICS if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: no such file; a run with a folder writes {METRICS} there")
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if not isinstance(line, dict) or "kind" not in line or "step" not in line:
            continue
        if line["kind"] == "resume":
            lines = [kept for kept in lines if kept["step"] <= line["step"]]
        else:
            lines.append(line)
    return lines


def disk_error(path: Path, error: OSError) -> WorthitError:
    """What to say when `path` cannot be written."""
    reason = error.strerror or str(error)
    return WorthitError(
        f"{path}: cannot be written ({reason}); what was written before is whole: make room or "
        "choose another folder, then start the same run again to continue it"
    )
