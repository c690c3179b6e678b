"""An outcome as text: what was found, what that decides, and what would have decided otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from worthit.cli._terminal import Terminal, labelled
from worthit.scorecard.table import hardware
from worthit.scorecard.words import effect_number

Record = dict[str, Any]
STYLES = {
    "confirmed": ("green",),
    "refuted": ("red",),
    "inconclusive": ("yellow",),
    "agrees": ("green",),
    "off": ("red",),
}
LABEL = 13


def outcome_lines(outcome: Record, terminal: Terminal) -> Iterator[str]:
    """The whole outcome, line by line."""
    yield from _painted(terminal.wrap(f"{outcome['experiment']}: {outcome['question']}"), terminal)
    yield ""
    for line in outcome["verdict"]:
        yield from terminal.wrap(line, indent=2)
    yield ""
    yield from _expectation(outcome, terminal)
    yield ""
    yield from _claims(outcome, terminal)
    yield from _predicted(outcome, terminal)
    yield from _arms(outcome, terminal)
    for row in outcome["would_change"]:
        text = f"{row['claim']}: {row['text']}"
        yield from labelled("Would change", text, terminal, width=LABEL)
    for note in outcome["notes"]:
        yield from labelled("Note", note, terminal, width=LABEL)
    yield from _about(outcome, terminal)


def _painted(lines: Sequence[str], terminal: Terminal) -> Iterator[str]:
    yield from (terminal.paint(line, "bold") for line in lines)


def _expectation(outcome: Record, terminal: Terminal) -> Iterator[str]:
    state, expected = outcome["state"], outcome["expectation"]
    head = terminal.paint(state.upper(), "bold", *STYLES[state])
    yield f"{head}  {outcome['budget']}, {outcome['n_seeds']} seeds"
    text = f"{expected['statement']} ({expected['source']})"
    yield from labelled("Expected", text, terminal, width=LABEL)
    yield from labelled("So", outcome["means"], terminal, width=LABEL)


def _claims(outcome: Record, terminal: Terminal) -> Iterator[str]:
    rows = [(c["state"], c["statement"], c["found"]) for c in outcome["claims"]]
    yield from _table("Claims", rows, terminal)


def _predicted(outcome: Record, terminal: Terminal) -> Iterator[str]:
    metrics = {e["metric"]: e for e in outcome["effects"]}
    rows = []
    for p in outcome["predicted"]:
        name = metrics[p["metric"]]["name"] if p["metric"] in metrics else p["metric"]
        said = p["basis"] if p["value"] is None else f"predicted {effect_number(p, metrics)}"
        measured = p["measured"]
        found = "" if measured is None else f"measured {effect_number(p | measured, metrics)}"
        rows.append((p["agreement"], f"{p['arm']}: {name}", said, found))
    yield from _table("Predicted beside measured", rows, terminal)
    for p in outcome["predicted"]:
        if p["gap"]:
            yield from labelled("Why off", f"{p['arm']}: {p['gap']}", terminal, width=LABEL)


def _arms(outcome: Record, terminal: Terminal) -> Iterator[str]:
    names = dict.fromkeys(m for arm in outcome["arms"].values() for m in arm["metrics"])
    rows = []
    for ident, arm in outcome["arms"].items():
        for metric in names:
            if metric in arm["metrics"]:
                rows.append((ident, metric, arm["metrics"][metric]["text"]))
        tuning = arm["tuning"]
        if tuning is not None:
            tried = len(tuning["results"])
            rows.append((ident, "learning rate", f"{tuning['best']:g}, best of {max(tried, 1)}"))
    yield from _table("Arms", rows, terminal)


def _table(title: str, rows: Sequence[tuple[str, ...]], terminal: Terminal) -> Iterator[str]:
    if not rows:
        return
    yield terminal.paint(title, "bold")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        cells[0] = terminal.paint(cells[0], *STYLES.get(row[0], ()))
        rest = [terminal.plain(cell) for cell in (*cells[1:], row[-1])]
        yield "  " + "  ".join([cells[0], *rest])
    yield ""


def _about(outcome: Record, terminal: Terminal) -> Iterator[str]:
    env = outcome["environment"]
    git = env.get("git") or {}
    commit = f", commit {git['commit'][:10]}" if git.get("commit") else ""
    dirty = " with changes" if git.get("is_dirty") else ""
    text = f"{hardware(outcome)}, torch {env['torch']}, {outcome['date'][:10]}{commit}{dirty}"
    yield from labelled("Measured on", text, terminal, width=LABEL)
    yield from labelled("Again", outcome["command"], terminal, width=LABEL)
    yield from labelled("Kept in", outcome["folder"], terminal, width=LABEL)
