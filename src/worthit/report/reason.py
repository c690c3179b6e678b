"""The page and the figure of `worthit reason --curve`: accuracy against tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from worthit.report import pieces
from worthit.report._text import EN
from worthit.report.figures import (
    ACCENT,
    BAND,
    INK,
    LINE,
    SETTINGS,
    SOFT,
    drawn,
    quiet,
    standalone,
)
from worthit.report.measured_figures import LINES, MARKERS, SECOND
from worthit.report.write import write_text

Record = Mapping[str, Any]
WORDS = {**EN, "skip": "Skip to the curve"}
COLORS = (ACCENT, SECOND, INK, SOFT)


def write_reason(record: Record, path: str | os.PathLike[str]) -> int:
    """Write the page, or the figure alone where `path` ends in `.svg`; its size in bytes.

    Raises:
        InputError: `path` cannot be written.
    """
    if os.fspath(path).lower().endswith(".svg"):
        return write_text(standalone(curve_plot(record["points"])), path)
    return write_text(reason_page(record), path)


def reason_page(record: Record) -> str:
    """One offline page from the record alone."""
    name = record["model"]
    sections = {
        "curve": ("Accuracy against tokens", _curve(record)),
        "budget": ("What to take at each budget", _budgets(record)),
        "questions": ("Questions", _questions(record)),
        "reproduce": ("Reproduce", _reproduce(record)),
    }
    return pieces.document(
        WORDS,
        lang="en",
        title=f"Reasoning: {name}",
        heading=f'Reasoning: <span class="model">{escape(name)}</span>',
        links=[(key, title) for key, (title, _) in sections.items()],
        skip_to="curve",
        head="<p>What more tokens buy, and in which way they buy most.</p>",
        body="".join(pieces.section(key, title, body) for key, (title, body) in sections.items()),
    )


def _curve(record: Record) -> str:
    points = record["points"]
    twin = pieces.table(
        ("Strategy", "Tries", "Tokens a question", "Right", "95 % interval"),
        [_row(p) for p in points],
        label="Accuracy against tokens",
        numbers=(1, 2, 3, 4),
    )
    n = len(record["questions"])
    caption = (
        f"{n} questions of the task {record['task']}; tokens said a question, on average. The line "
        "of the exact check is a ceiling for every other choice among the same samples."
    )
    return pieces.figure(curve_plot(points), caption, twin, WORDS, label="Accuracy against tokens")


def _row(p: Record) -> tuple[str, ...]:
    return (
        escape(p["strategy"]),
        str(p["setting"]),
        f"{p['n_tokens']:.1f}",
        f"{100 * p['accuracy']:.1f} %",
        f"{100 * p['low']:.0f} to {100 * p['high']:.0f} %",
    )


def _budgets(record: Record) -> str:
    heads = ("From so many tokens a question", "Take", "Tries", "Right")

    def rows(points: Sequence[Record]) -> list[tuple[str, ...]]:
        return [
            (
                f"{p['n_tokens']:.1f}",
                escape(p["strategy"]),
                str(p["setting"]),
                f"{100 * p['accuracy']:.1f} %",
            )
            for p in points
        ]

    return (
        "<p>Where nothing checks an answer:</p>"
        + pieces.table(heads, rows(record["optimal"]), label="Without a check", numbers=(0, 2, 3))
        + "<p>Where an exact check does:</p>"
        + pieces.table(
            heads, rows(record["optimal_with_check"]), label="With a check", numbers=(0, 2, 3)
        )
    )


def _questions(record: Record) -> str:
    rows = [
        (
            escape(q["text"]),
            escape(q["greedy"]),
            "yes" if q["is_greedy_right"] else "no",
            f"{q['n_right']} of {q['n']}",
        )
        for q in record["questions"]
    ]
    heads = ("Question", "Greedy answer", "Right", "Samples right")
    return pieces.table(heads, rows, label="Questions")


def curve_plot(points: Sequence[Record]) -> str:
    """A line a strategy, tokens on a logarithmic axis; a band where its interval lies."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines: dict[str, list[Record]] = {}
    for p in points:
        lines.setdefault(p["strategy"], []).append(p)
    with quiet(), rc_context(SETTINGS):
        figure = Figure(figsize=(7.0, 3.8), layout="constrained")
        ax = figure.add_subplot()
        for i, (strategy, own) in enumerate(lines.items()):
            xs = [p["n_tokens"] for p in own]
            if len(own) > 1 and i < 2:
                lows, highs = [100 * p["low"] for p in own], [100 * p["high"] for p in own]
                ax.fill_between(xs, lows, highs, color=BAND, linewidth=0, alpha=0.6)
            ax.plot(
                xs,
                [100 * p["accuracy"] for p in own],
                color=COLORS[i % len(COLORS)],
                linestyle=LINES[i % len(LINES)],
                marker=MARKERS[i % len(MARKERS)],
                markersize=5,
                linewidth=1.6,
                label=strategy,
            )
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.minorticks_off()
        ax.set_ylim(-3, 103)
        ax.set_xlabel("tokens said a question")
        ax.set_ylabel("right, %")
        ax.grid(True, axis="y", color=LINE)
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return drawn(figure, ident="reason-plot", title="Accuracy against tokens")


def _reproduce(record: Record) -> str:
    spent = record["spent"]
    facts = {
        "Model": record["path"],
        "Weights": record["dtype"],
        "Sampling": f"temperature {record['temperature']:g}, seed {record['seed']}",
        "Computed": f"{spent['n_prompt']:,} tokens of prompts, {spent['n_said']:,} said; "
        f"{spent['n_cached']:,} more of prompts were found in the cache",
        "Time": f"{record['seconds']:.0f} s",
    }
    return f"{pieces.facts(facts)}<p>This page is one file and asks no network.</p>"
