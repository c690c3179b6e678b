"""Figures of an outcome: curves with their bands, seeds in pairs, effects against their margins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from worthit.report.figures import ACCENT, BAND, INK, LINE, SETTINGS, SOFT, drawn, quiet

# An arm is told by its line and marker too, not by colour alone.
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
SECOND = "#010207"
Points = Sequence[Sequence[float]]


def band_plot(
    curves: Mapping[str, Mapping[str, Points]], *, ident: str, title: str, x: str, y: str
) -> str:
    """A line an arm, the median of its seeds, and a band from the lowest to the highest."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with quiet(), rc_context(SETTINGS):
        figure = Figure(figsize=(7.0, 3.3), layout="constrained")
        ax = figure.add_subplot()
        for i, (arm, by_seed) in enumerate(curves.items()):
            rows = band(list(by_seed.values()))
            xs = [row[0] for row in rows]
            color = _color(i)
            ax.fill_between(
                xs,
                [r[2] for r in rows],
                [r[3] for r in rows],
                color=BAND if i == 0 else LINE,
                linewidth=0,
                alpha=0.6,
            )
            ax.plot(
                xs,
                [r[1] for r in rows],
                color=color,
                linestyle=LINES[i % len(LINES)],
                linewidth=1.6,
                marker=MARKERS[i % len(MARKERS)] if len(xs) < 12 else None,
                markersize=4,
                label=arm,
            )
        ax.set_xlabel(x)
        ax.set_ylabel(y)
        ax.grid(True, axis="y")
        ax.legend(frameon=False)
        return drawn(figure, ident=ident, title=title)


def band(curves: Sequence[Points]) -> list[tuple[float, float, float, float]]:
    """x, and the median, lowest and highest y of the curves that have a point there."""
    at: dict[float, list[float]] = {}
    for points in curves:
        for x, y in points:
            at.setdefault(x, []).append(y)
    rows = []
    for x in sorted(at):
        ys = sorted(at[x])
        middle = len(ys) // 2
        median = ys[middle] if len(ys) % 2 else (ys[middle - 1] + ys[middle]) / 2
        rows.append((x, median, ys[0], ys[-1]))
    return rows


def pair_plot(
    values: Mapping[str, Mapping[str, float]], *, ident: str, title: str, y: str, is_log: bool
) -> str:
    """A dot an arm and seed; one line joins a seed's dots, so that pairs are seen as pairs."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    arms = list(values)
    with quiet(), rc_context(SETTINGS):
        figure = Figure(figsize=(1.6 + 1.3 * len(arms), 2.9), layout="constrained")
        ax = figure.add_subplot()
        for seed in dict.fromkeys(seed for by_seed in values.values() for seed in by_seed):
            there = [(i, values[arm][seed]) for i, arm in enumerate(arms) if seed in values[arm]]
            ax.plot([i for i, _ in there], [v for _, v in there], color=SOFT, linewidth=0.8)
        for i, arm in enumerate(arms):
            ys = list(values[arm].values())
            ax.plot(
                [i] * len(ys),
                ys,
                linestyle="",
                marker=MARKERS[i % len(MARKERS)],
                markersize=6,
                color=_color(i),
                markeredgecolor=INK,
                markeredgewidth=0.5,
            )
        ax.set_xticks(range(len(arms)), arms)
        ax.set_xlim(-0.5, len(arms) - 0.5)
        if is_log:
            ax.set_yscale("log")
        ax.set_ylabel(y)
        ax.grid(True, axis="y")
        return drawn(figure, ident=ident, title=title)


def interval_plot(
    rows: Sequence[Mapping[str, Any]], *, ident: str, title: str, x: str, is_ratio: bool
) -> str:
    """Effects with their intervals, one a line; the band of what does not matter is shaded.

    A row has `label`, `estimate`, `low`, `high`, `margin`, and `predicted` where there is one.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    none = 1.0 if is_ratio else 0.0
    with quiet(), rc_context(SETTINGS):
        figure = Figure(figsize=(7.0, 0.8 + 0.42 * len(rows)), layout="constrained")
        ax = figure.add_subplot()
        margin = max(row["margin"] for row in rows)
        ax.axvspan(none - margin, none + margin, color=BAND, linewidth=0)
        ax.axvline(none, color=INK, linewidth=0.9)
        left, right = _limits(rows, none, margin)
        for i, row in enumerate(rows):
            # An open end runs to the edge of the figure.
            low = left if row["low"] is None else max(row["low"], left)
            high = right if row["high"] is None else min(row["high"], right)
            ax.plot([low, high], [i, i], color=ACCENT, linewidth=2.2, solid_capstyle="butt")
            ax.plot([row["estimate"]], [i], marker="o", markersize=6, color=ACCENT)
            if row.get("predicted") is not None:
                ax.plot(
                    [row["predicted"]],
                    [i],
                    marker="D",
                    markersize=6,
                    color="none",
                    markeredgecolor=SECOND,
                    markeredgewidth=1.5,
                    linestyle="",
                )
        ax.set_xlim(left, right)
        ax.set_yticks(range(len(rows)), [row["label"] for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlabel(x)
        ax.grid(True, axis="x")
        return drawn(figure, ident=ident, title=title)


def _limits(rows: Sequence[Mapping[str, Any]], none: float, margin: float) -> tuple[float, float]:
    seen = [none - 1.5 * margin, none + 1.5 * margin]
    for row in rows:
        ends = [row[k] for k in ("low", "high", "estimate", "predicted") if row.get(k) is not None]
        seen += [end for end in ends if math.isfinite(end)]
    left, right = min(seen), max(seen)
    room = 0.06 * (right - left or 1.0)
    return left - room, right + room


def _color(i: int) -> str:
    return (ACCENT, SECOND, INK, SOFT)[i % 4]
