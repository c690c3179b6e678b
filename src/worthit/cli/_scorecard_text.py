"""The scorecard as text: what was measured in full, what was not in one line a family."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from worthit.cli._terminal import Terminal, labelled

Record = dict[str, Any]
STYLES = {"confirmed": ("green",), "refuted": ("red",), "inconclusive": ("yellow",)}
LABEL = 14


def scorecard_lines(record: Record, terminal: Terminal) -> Iterator[str]:
    """Every technique by family."""
    families: dict[str, list[Record]] = {}
    for row in record["rows"]:
        families.setdefault(row["family"], []).append(row)
    for family, rows in families.items():
        yield terminal.paint(family, "bold", "cyan")
        for row in rows:
            for one in (row, *row["others"]):
                if one["state"] is not None:
                    yield from _measured(one, terminal)
        waiting = [row["technique"] for row in rows if row["state"] is None]
        if waiting:
            yield from _hanging("not measured yet: " + ", ".join(waiting), terminal)
        yield ""
    yield (
        f"{record['n_measured']} of {record['n_techniques']} techniques measured: "
        f"{record['n_confirmed']} expectations confirmed, {record['n_refuted']} refuted, "
        f"{record['n_inconclusive']} inconclusive"
    )


def _measured(row: Record, terminal: Terminal) -> Iterator[str]:
    state = terminal.paint(row["state"], *STYLES[row["state"]])
    name, ident = row["technique"], row["experiment"]
    by = "" if ident == name else f" by {ident}"
    yield f"  {terminal.paint(name, 'bold')}{by}  {state}"
    if row["claimed"]:
        first = row["claimed"][0]
        yield from labelled(
            "    claimed", f"{first['claim']} ({first['source']})", terminal, width=LABEL
        )
    yield from labelled("    expected", row["expected"]["statement"], terminal, width=LABEL)
    yield from labelled("    predicted", "; ".join(row["predicted"]), terminal, width=LABEL)
    for line in row["measured"]:
        yield from labelled("    measured", line, terminal, width=LABEL)
    if row["agreement"] is not None:
        yield from labelled(
            "    agreement", f"{row['agreement']} predictions", terminal, width=LABEL
        )
    yield from labelled("    so", row["means"], terminal, width=LABEL)
    origin = "your run" if row["origin"] == "yours" else row["budget"]
    about = f"{origin}, {row['n_seeds']} seeds, {row['date']}, {row['hardware']}; {row['command']}"
    yield from labelled("    how", about, terminal, width=LABEL)


def _hanging(text: str, terminal: Terminal) -> Iterator[str]:
    for i, line in enumerate(terminal.wrap(text, indent=4)):
        yield line[2:] if i == 0 else line
