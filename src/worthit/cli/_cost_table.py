"""The cost of one case as text."""

from __future__ import annotations

from typing import Any

from worthit.cli._terminal import Terminal, labelled
from worthit.cost.bottleneck import SHOWN, statement
from worthit.judge.words import count, duration, size
from worthit.report.words import (
    case_line,
    layout_text,
    memory_line,
    misfit_line,
    money_text,
    time_line,
)
from worthit.spec.case import Case

Record = dict[str, Any]
N_ROWS = 12
HEADS = ("PHASE", "OPERATION", "LAYER", "COUNT", "FLOPS", "BYTES", "TIME", "BOUND BY")


def cost_lines(
    record: Record, case: Case, terminal: Terminal, *, is_full: bool = False
) -> list[str]:
    """Everything that `worthit cost` says."""
    lines: list[str] = []
    misfit = misfit_line(record["fit"])
    if misfit:
        lines += [terminal.paint(line, "bold", "red") for line in terminal.wrap(misfit)] + [""]
    params, cache, flops = record["params"], record["cache"], record["flops"]
    head = terminal.wrap(case_line(case, params["total"], params["active"]))
    lines += [terminal.paint(line, "bold") for line in head]
    basis = record["basis"]
    calibrated = "calibrated" if basis["is_calibrated"] else "not calibrated here"
    rows = {
        "Basis": f"formulas, {calibrated}; efficiencies: {basis['device_efficiency']}",
        "Layout": layout_text(record["fit"]),
        "Params": f"{count(params['total'])} in all, {count(params['active'])} active, "
        f"{count(params['embedding'])} embedding",
        "Cache": cache_text(cache),
        "FLOPs": flops_text(flops),
        "Memory": memory_line(record["memory"]),
        "Time": time_line(record["time"]),
        "Money": money_text(record["money"]),
    }
    for label, text in rows.items():
        lines += labelled(label, text, terminal)
    lines.append("")
    for bottleneck in record["bottlenecks"]:
        if bottleneck["share"] >= SHOWN:
            bar = terminal.paint(terminal.bar(bottleneck["share"], 20), "cyan")
            text = statement(bottleneck["id"], bottleneck["share"])
            lines.append(f"  {bar}  {text}")
    return [*lines, "", *ledger_lines(record["ledger"], terminal, is_full=is_full)]


def cache_text(cache: Record) -> str:
    """Growth of the cache per token, and what a sequence holds."""
    parts = [f"{size(cache['bytes_per_token'])} a token"]
    if cache["bytes_per_token_beyond_window"] != cache["bytes_per_token"]:
        parts.append(f"{size(cache['bytes_per_token_beyond_window'])} once every window is full")
    if cache["fixed_bytes_per_sequence"]:
        parts.append(f"{size(cache['fixed_bytes_per_sequence'])} fixed a sequence")
    parts.append(f"{size(cache['bytes_per_sequence'])} a sequence here")
    return ", ".join(parts)


def flops_text(flops: Record) -> str:
    """FLOPs by phase."""
    names = {
        "decode_per_token": "to decode a token",
        "prefill": "to prefill a prompt",
        "train_per_token": "to train on a token",
    }
    return ", ".join(f"{count(flops[key])} {name}" for key, name in names.items() if flops[key])


def ledger_lines(ledger: list[Record], terminal: Terminal, *, is_full: bool) -> list[str]:
    """The operations that take the most time, or all in order."""
    rows = ledger if is_full else sorted(ledger, key=lambda row: -row["time_s"])[:N_ROWS]
    cells = [
        (
            row["phase"],
            row["op"],
            row["layer_kind"],
            count(row["count"]),
            count(row["flops"] * row["count"]),
            size(row["bytes"] * row["count"]),
            duration(row["time_s"]),
            row["bound"],
        )
        for row in rows
    ]
    right = range(3, 7)
    kept = [i for i in range(len(HEADS)) if not (terminal.width < 100 and i in (2, 3))]
    widths = [max(len(line[i]) for line in [HEADS, *cells]) for i in range(len(HEADS))]

    def fit(line: tuple[str, ...]) -> str:
        return "  ".join(
            line[i].rjust(widths[i]) if i in right else line[i].ljust(widths[i]) for i in kept
        )

    lines = [terminal.paint(fit(HEADS), "bold"), *map(fit, cells)]
    if len(rows) < len(ledger):
        lines.append(f"the {len(rows)} longest of {len(ledger)} operations; --all for every one")
    return lines
