"""Figures drawn by matplotlib as SVG that belongs to the page: its colours, its fonts, its ids.

Colours are placeholders that become CSS variables, so that
one drawing serves light and dark; text stays text; equal input gives equal bytes.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from worthit.judge.judge import CurvePoint
from worthit.judge.verdict import THRESHOLD

# Placeholder -> CSS variable. Each is a colour that nothing else draws with.
COLORS = {
    "#010203": "--ink",
    "#010204": "--soft",
    "#010205": "--line",
    "#010206": "--accent",
    "#010207": "--second",
    "#010208": "--band",
    "#010209": "--paper",
}
INK, SOFT, LINE, ACCENT, SECOND, BAND, PAPER = COLORS
# Of a figure outside a page, where no style sheet says what the variables are.
STYLE = (
    "<style>svg{--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;--accent:#0a5fc2;--second:#9a3a00;"
    "--band:#cfe3fb;--paper:#ffffff;background:#ffffff;font-family:sans-serif}</style>"
)
SIZE = 10.0
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "worthit",
    "font.size": SIZE,
    "font.family": ["DejaVu Sans"],
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
}


@dataclass(frozen=True, kw_only=True)
class RooflinePoint:
    """One operation, or one phase in all: FLOPs per byte, and FLOP/s that it reaches."""

    name: str
    phase: str
    intensity: float
    flops_per_s: float
    time_share: float = 0.0
    is_total: bool = False


MARKERS = {"prefill": "s", "decode": "o", "train": "s"}


def roofline(
    points: Sequence[RooflinePoint],
    *,
    peaks: Sequence[tuple[str, float]],
    bytes_per_s: float,
    ident: str,
    title: str,
    labels: dict[str, str],
) -> str:
    """Operations below the roofs of memory and arithmetic, both axes logarithmic."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    xs = [p.intensity for p in points] or [1.0]
    highest = max(peak for _, peak in peaks)
    ridge = highest / bytes_per_s
    left, right = min([*xs, ridge]) / 3, max([*xs, ridge]) * 4
    lowest = min([p.flops_per_s for p in points] + [left * bytes_per_s])
    with quiet(), rc_context(SETTINGS):
        figure = Figure(figsize=(7.6, 4.3), layout="constrained")
        ax = figure.add_subplot()
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlim(left, right)
        ax.set_ylim(lowest / 2, highest * 3)
        ax.grid(True, which="major")
        ax.set_xlabel(labels["intensity"])
        ax.set_ylabel(labels["achieved"])
        ax.plot([left, ridge], [left * bytes_per_s, highest], color=INK, linewidth=1.6)
        ax.annotate(
            labels["bandwidth"],
            (left, left * bytes_per_s),
            xytext=(26, 8),
            textcoords="offset points",
            color=INK,
        )
        for i, (name, peak) in enumerate(peaks):
            ax.plot(
                [peak / bytes_per_s, right],
                [peak, peak],
                color=INK,
                linewidth=1.6 if peak == highest else 1.0,
                linestyle="-" if peak == highest else "--",
            )
            # Two roofs that lie close would print over one another.
            raised = 4 if i == 0 else -12
            ax.annotate(
                name,
                (right, peak),
                xytext=(-4, raised),
                textcoords="offset points",
                ha="right",
                color=INK,
            )
        for p in sorted(points, key=lambda p: p.is_total):
            color = ACCENT if p.phase == "decode" else SECOND
            ax.plot(
                [p.intensity],
                [p.flops_per_s],
                marker=MARKERS.get(p.phase, "o"),
                markersize=11 if p.is_total else 4 + 8 * p.time_share**0.5,
                color=color if p.is_total else PAPER,
                markeredgecolor=color,
                markeredgewidth=1.4,
                alpha=1.0,
                zorder=4 if p.is_total else 3,
            )
            if p.is_total:
                ax.annotate(
                    p.name,
                    (p.intensity, p.flops_per_s),
                    xytext=(10, -14),
                    textcoords="offset points",
                    weight="bold",
                    color=color,
                    zorder=5,
                )
        return drawn(figure, ident=ident, title=title)


def flip_plot(
    curves: dict[str, Sequence[CurvePoint]],
    here: dict[str, float],
    *,
    ident: str,
    title: str,
    labels: dict[str, str],
) -> str:
    """Speed-up with its interval along each axis of the case, the threshold and the case marked."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with quiet(), rc_context(SETTINGS):
        figure = Figure(figsize=(2.15 * max(len(curves), 2), 2.3), layout="constrained")
        panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        low, high = _limits(curves.values())
        for ax, (axis, points) in zip(panels, curves.items(), strict=True):
            shown = [p for p in points if 0 < p.ratio < float("inf")]
            x = [p.value for p in shown]
            ax.set_xscale("log", base=2)
            ax.set_yscale("log", base=2)
            ax.set_ylim(low, high)
            ax.axhline(1.0, color=SOFT, linewidth=0.8)
            ax.axhline(1 / (1 - THRESHOLD), color=INK, linewidth=0.9, linestyle="--")
            ax.fill_between(
                x,
                [1 / p.high for p in shown],
                [1 / p.low if p.low > 0 else high for p in shown],
                color=BAND,
                linewidth=0,
            )
            ax.plot(x, [1 / p.ratio for p in shown], color=ACCENT, linewidth=1.6)
            now = [p for p in shown if p.value == here.get(axis)]
            ax.plot(
                [p.value for p in now],
                [1 / p.ratio for p in now],
                marker="o",
                markersize=6,
                color=ACCENT,
                markeredgecolor=INK,
            )
            _ticks(ax, points, here[axis], low, high)
            ax.set_xlabel(axis)
        panels[0].set_ylabel(labels["speedup"])
        return drawn(figure, ident=ident, title=title)


def _ticks(ax: Any, points: Sequence[CurvePoint], here: float, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    first, last = points[0].value, points[-1].value
    marks = [first, here, last] if first * 2 < here < last / 2 else [first, last]
    ax.set_xlim(points[0].value / 1.15, points[-1].value * 1.15)
    ax.xaxis.set_major_locator(FixedLocator(marks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda value, _: short(value))
    steps = [m for m in (0.125, 0.25, 0.5, 0.8, 1, 1.25, 1.5, 2, 4, 8) if low <= m <= high]
    if high / low > 4:
        steps = [m for m in steps if m not in (0.8, 1.25, 1.5)]
    ax.yaxis.set_major_locator(FixedLocator(steps))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    ax.grid(True, axis="y")


def _limits(curves: Iterable[Sequence[CurvePoint]]) -> tuple[float, float]:
    gains = [1 / p.ratio for points in curves for p in points if 0 < p.ratio < float("inf")]
    return max(min([*gains, 0.85]) / 1.12, 0.1), min(max([*gains, 1.3]) * 1.12, 12.0)


def short(value: float) -> str:
    """A tick's label: `500`, `32k`, `0.25`.

    >>> short(32000), short(0.25), short(1e6)
    ('32k', '0.25', '1M')
    """
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit * (1 if unit > 1e3 else 2):
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


class quiet:
    """No chatter on stderr about caches of fonts."""

    def __enter__(self) -> None:
        self.logger = logging.getLogger("matplotlib")
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self.logger.setLevel(self.level)


def drawn(figure: Any, *, ident: str, title: str) -> str:
    """The figure as an element of the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return adopt(buffer.getvalue(), ident=ident, title=title)


_USED = re.compile(r'(?:xlink:href="#|url\(#)([^")]+)')


def adopt(svg: str, *, ident: str, title: str) -> str:
    """Make a stand-alone SVG part of a page.

    Prolog, metadata and namespaces go; ids that nothing uses go and the others start with `ident`;
    placeholder colours become CSS variables; the page's font takes over.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(_USED.findall(svg))

    def keep(match: re.Match[str]) -> str:
        return f' id="{ident}-{match[1]}"' if match[1] in used else ""

    svg = re.sub(r'\sid="([^"]*)"', keep, svg)
    svg = re.sub(r'xlink:href="#', f'href="#{ident}-', svg)
    svg = re.sub(r"url\(#", f"url(#{ident}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;?|font: ([\d.]+)px [^;\"]*", _font, svg)
    for color, variable in COLORS.items():
        svg = svg.replace(color, f"var({variable})")
    svg = re.sub(r"\n\s*", "\n", svg)
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box, "matplotlib writes a viewBox"
    width = float(box[1].split()[2])
    head = (
        f'<svg class="plot" viewBox="{box[1]}" style="max-width:{width * 4 / 3:.0f}px" role="img" '
        f'aria-labelledby="{ident}-title"><title id="{ident}-title">{escape(title)}</title>'
    )
    return head + svg[svg.index(">", svg.index("<svg")) + 1 :].strip()


def _font(match: re.Match[str]) -> str:
    return f"font-size: {match[1]}px" if match[1] else ""


def standalone(svg: str) -> str:
    """A figure of a page as a file of its own."""
    head, rest = svg.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg">{STYLE}{rest}\n'
