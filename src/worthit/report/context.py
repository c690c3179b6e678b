"""The page of `worthit context`: nominal against effective length, needles, losses by position."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from worthit.report import pieces
from worthit.report._text import EN
from worthit.report.figures import ACCENT, INK, LINE, SETTINGS, SOFT, drawn, quiet, standalone
from worthit.report.measured_figures import LINES, MARKERS, SECOND
from worthit.report.write import write_text

Record = Mapping[str, Any]
WORDS = {**EN, "skip": "Skip to the lengths"}
COLORS = (ACCENT, SECOND, INK, SOFT)
# By what an effective length is known.
KINDS = ("needle", "loss")


def write_context(record: Record, path: str | os.PathLike[str]) -> int:
    """Write the page; one figure where `path` ends in `.svg`, tables in `.md`; its size in bytes.

    Raises:
        InputError: `path` cannot be written.
    """
    ending = os.fspath(path).lower().rpartition(".")[2]
    if ending == "svg":
        return write_text(standalone(summary_plot(record)), path)
    if ending == "md":
        return write_text(context_tables(record), path)
    return write_text(context_page(record), path)


def context_tables(record: Record) -> str:
    """What was measured as tables of a document: an arm a row, tokens across."""
    arms, parts = record["arms"], []
    lengths = [
        (arm_name(rope), f"{arm['context_len']:,}", *(_count(arm["effective"][k]) for k in KINDS))
        for rope, arm in arms.items()
    ]
    parts.append(_markdown(("tokens", "nominal", "by needle", "by loss"), lengths))
    wanted: tuple[tuple[str, str, str, Callable[[Record], str]], ...] = (
        ("accuracy", "needles found", "length", _found),
        ("positions", "perplexity of tokens up to", "end", _perplexity),
    )
    for key, title, across, cell in wanted:
        there = {rope: {c[across]: c for c in arm[key]} for rope, arm in arms.items() if arm[key]}
        places = sorted({n for cells in there.values() for n in cells})
        rows = [
            (arm_name(rope), *(cell(cells[n]) if n in cells else "" for n in places))
            for rope, cells in there.items()
        ]
        if rows:
            parts.append(_markdown((title, *(f"{n:,}" for n in places)), rows))
    return "\n".join(parts)


def _found(cell: Record) -> str:
    return f"{round(cell['accuracy'] * cell['n'])} of {cell['n']}"


def _perplexity(bucket: Record) -> str:
    return f"{bucket['perplexity']:.3g}"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summary_plot(record: Record) -> str:
    """Needles and losses over tokens beside each other; dotted, what each arm says it takes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    arms = record["arms"]
    panels = [
        (
            y,
            {
                rope: [(c[x], by * c[of]) for c in arm[key]]
                for rope, arm in arms.items()
                if arm[key]
            },
        )
        for key, y, x, of, by in (
            ("accuracy", "needles found, %", "length", "accuracy", 100.0),
            ("positions", "loss, nats", "end", "loss", 1.0),
        )
    ]
    panels = [(y, curves) for y, curves in panels if curves]
    with quiet(), rc_context(SETTINGS):
        figure = Figure(figsize=(3.9 * max(len(panels), 1), 3.2), layout="constrained")
        for i, (y, curves) in enumerate(panels):
            ax = figure.add_subplot(1, len(panels), i + 1)
            _draw(ax, curves)
            # Of what an arm takes, that which is in the picture.
            for nominal in sorted({arms[rope]["context_len"] for rope in curves}):
                if nominal <= ax.get_xlim()[1]:
                    ax.axvline(nominal, color=SOFT, linewidth=0.8, linestyle=":")
            ax.set_ylabel(y)
        title = "Nominal against effective context"
        return drawn(figure, ident="context-plot", title=title)


def context_page(record: Record) -> str:
    """One offline page from the record alone."""
    sections = {
        "lengths": ("Nominal against effective", _lengths(record)),
        "needle": ("Needle", _needles(record)),
        "positions": ("Loss by position", _positions(record)),
        "reproduce": ("Reproduce", _reproduce(record)),
    }
    there = {key: part for key, part in sections.items() if part[1]}
    name = record["model"]
    return pieces.document(
        WORDS,
        lang="en",
        title=f"Context: {name}",
        heading=f'Context: <span class="model">{escape(name)}</span>',
        links=[(key, title) for key, (title, _) in there.items()],
        skip_to="lengths",
        head="<p>How much of a context the model uses, and not only accepts.</p>",
        body="".join(pieces.section(key, title, body) for key, (title, body) in there.items()),
    )


def arm_name(rope: str) -> str:
    """What an arm is called."""
    return "as it is" if rope == "none" else rope


def _lengths(record: Record) -> str:
    arms = record["arms"]
    rows = [
        (
            escape(arm_name(rope)),
            f"{arm['context_len']:,}",
            _count(arm["effective"]["needle"]),
            _count(arm["effective"]["loss"]),
        )
        for rope, arm in arms.items()
    ]
    heads = ("Arm", "Nominal", "Effective by needle", "Effective by loss")
    twin = pieces.table(heads, rows, label="Lengths", numbers=(1, 2, 3))
    longest = max(*record["setup"]["lengths"], record["setup"].get("row_length") or 0)
    caption = (
        f"Tokens. Nothing beyond {longest:,} was tested: a bar that reaches it may go further."
    )
    drawing = length_plot(arms, longest=longest)
    return pieces.figure(drawing, caption, twin, WORDS, label="Nominal against effective length")


def _count(value: int | None) -> str:
    return "not measured" if value is None else f"{value:,}"


def length_plot(arms: Mapping[str, Record], *, longest: int) -> str:
    """Three bars an arm on one axis of tokens: what it says, and what it does."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    kinds = ("nominal", "needle", "loss")
    with quiet(), rc_context(SETTINGS):
        figure = Figure(figsize=(7.0, 0.9 + 0.9 * len(arms)), layout="constrained")
        ax = figure.add_subplot()
        for i, arm in enumerate(arms.values()):
            values = (arm["context_len"], arm["effective"]["needle"], arm["effective"]["loss"])
            for j, (kind, value) in enumerate(zip(kinds, values, strict=True)):
                y = i + 0.27 * (j - 1)
                color = LINE if kind == "nominal" else COLORS[j - 1]
                ax.barh(y, value or 0, height=0.22, color=color, label=kind if i == 0 else None)
        ax.axvline(longest, color=SOFT, linewidth=0.8, linestyle=":")
        ax.set_yticks(range(len(arms)), [arm_name(rope) for rope in arms])
        ax.invert_yaxis()
        ax.set_xlabel("tokens")
        ax.grid(True, axis="x")
        ax.legend(frameon=False, loc="lower right")
        return drawn(figure, ident="lengths-plot", title="Nominal against effective length")


def _needles(record: Record) -> str:
    arms = {rope: arm for rope, arm in record["arms"].items() if arm["needle"]}
    if not arms:
        return ""
    depths = record["setup"]["depths"]
    lengths = sorted(record["setup"]["lengths"])
    rows = []
    for rope, arm in arms.items():
        for length in lengths:
            cells = [c for c in arm["needle"] if c["length"] == length]
            by_depth = [_share([c for c in cells if c["depth"] == d]) for d in depths]
            rows.append((escape(arm_name(rope)), f"{length:,}", *by_depth, _share(cells)))
    heads = ("Arm", "Length", *(f"Depth {d:g}" for d in depths), "All")
    twin = pieces.table(heads, rows, label="Needles found", numbers=range(1, len(heads)))
    curves = {
        rope: [(a["length"], 100 * a["accuracy"]) for a in arm["accuracy"]]
        for rope, arm in arms.items()
    }
    drawing = curve_plot(
        curves, ident="needle-plot", title="Needles found", y="found, %", limits=(-4, 104)
    )
    keys = record["setup"]["n_keys"]
    caption = (
        f"Of all depths; {keys} {'number' if keys == 1 else 'numbers'} in the text, one asked for."
    )
    return pieces.figure(drawing, caption, twin, WORDS, label="Needles found at each length")


def _share(cells: Sequence[Record]) -> str:
    return f"{sum(c['is_found'] for c in cells)} of {len(cells)}" if cells else ""


def _positions(record: Record) -> str:
    arms = {rope: arm for rope, arm in record["arms"].items() if arm["positions"]}
    if not arms:
        return ""
    rows = [
        (
            escape(arm_name(rope)),
            f"{b['start']:,} to {b['end']:,}",
            f"{b['loss']:.3f}",
            "" if b["stderr"] is None else f"{b['stderr']:.3f}",
            f"{b['perplexity']:.4g}",
        )
        for rope, arm in arms.items()
        for b in arm["positions"]
    ]
    heads = ("Arm", "Tokens before", "Loss, nats", "Standard error", "Perplexity")
    twin = pieces.table(heads, rows, label="Loss by position", numbers=(1, 2, 3, 4))
    drawing = loss_plot(arms)
    n = record["setup"]["n_rows"]
    caption = f"Mean of each bucket over {n} long files of the {record['text']}."
    return pieces.figure(drawing, caption, twin, WORDS, label="Loss by position")


def loss_plot(arms: Mapping[str, Record]) -> str:
    """The loss of each bucket, a line an arm."""
    curves = {rope: [(b["end"], b["loss"]) for b in arm["positions"]] for rope, arm in arms.items()}
    return curve_plot(curves, ident="loss-plot", title="Loss by position", y="loss, nats")


def curve_plot(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    ident: str,
    title: str,
    y: str,
    limits: tuple[float, float] | None = None,
) -> str:
    """A line an arm over tokens, on a logarithmic axis."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with quiet(), rc_context(SETTINGS):
        figure = Figure(figsize=(7.0, 3.2), layout="constrained")
        ax = figure.add_subplot()
        _draw(ax, curves)
        if limits is not None:
            ax.set_ylim(*limits)
        ax.set_ylabel(y)
        return drawn(figure, ident=ident, title=title)


def _draw(ax: Any, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """A line an arm, and axes that fit all of them."""
    for i, (rope, points) in enumerate(curves.items()):
        ax.plot(
            [x for x, _ in points],
            [value for _, value in points],
            color=COLORS[i % len(COLORS)],
            linestyle=LINES[i % len(LINES)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            linewidth=1.6,
            label=arm_name(rope),
        )
    ax.set_xscale("log", base=2)
    ticks = sorted({x for points in curves.values() for x, _ in points})
    ax.set_xticks(ticks, [f"{x:,.0f}" for x in ticks])
    ax.minorticks_off()
    ax.set_xlabel("tokens")
    ax.grid(True, axis="y")
    ax.legend(frameon=False)


def _reproduce(record: Record) -> str:
    setup = record["setup"]
    facts = {
        "Model": record["path"],
        "Weights": record["dtype"],
        "Text": record["text"],
        "Setup": ", ".join(f"{key} {value}" for key, value in setup.items()),
    }
    return f"{pieces.facts(facts)}<p>This page is one file and asks no network.</p>"
