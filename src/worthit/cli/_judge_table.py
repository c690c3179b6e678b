"""The judge's table: what does not fit, the case, what binds, and a verdict a row.

A wide terminal has the reason in a column of its own, a narrow one under the row. What is in place,
and what no change nearby makes worth it, takes one line, unless `--all` asks for every reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from worthit.cli._preference_table import preference_lines
from worthit.cli._terminal import Terminal, labelled
from worthit.cost.bottleneck import percent, statement
from worthit.cost.record import fit_json, memory_json
from worthit.judge.judge import Judgement, Verdict
from worthit.judge.preferences import FAMILY
from worthit.judge.verdict import THRESHOLD
from worthit.report.words import (
    basis,
    case_line,
    effect,
    flip_text,
    goal_metric,
    layout_text,
    mark,
    memory_line,
    misfit_line,
    param_counts,
    rank,
    time_line,
    times,
)

N_BOTTLENECKS = 6
# Cells of a bar, on a wide and on a narrow terminal.
BAR, SHORT_BAR = 20, 10
MARGIN = 2
# Columns of the reason below which it stands under its row.
LEAST_REASON = 64
HEADS = {
    "en": ("VERDICT", "TECHNIQUE", "EFFECT", "ADOPTION", "WOULD CHANGE", "BECAUSE"),
    "es": ("VEREDICTO", "TÉCNICA", "EFECTO", "ADOPCIÓN", "CAMBIARÍA", "PORQUE"),
}
STYLES = {"apply": ("green",), "defer": ("yellow",), "never": ("dim",)}


def judgement_lines(
    judgement: Judgement, terminal: Terminal, *, is_full: bool = False, lang: str = "en"
) -> list[str]:
    """The whole answer, line by line."""
    return [
        *_case_lines(judgement, terminal),
        "",
        *preference_lines(judgement, terminal),
        *_table(judgement, terminal, is_full=is_full, lang=lang),
        *_not_applicable(judgement, terminal, is_full=is_full),
        "",
        *_footer(judgement, terminal),
    ]


# --- the case ------------------------------------------------------------------------------------


def _case_lines(judgement: Judgement, terminal: Terminal) -> Iterator[str]:
    cost, case = judgement.cost, judgement.case
    fit = fit_json(cost)
    misfit = misfit_line(fit)
    if misfit:
        yield from (terminal.paint(line, "bold", "red") for line in terminal.wrap(misfit))
        yield ""
    params = param_counts(judgement)
    head = terminal.wrap(case_line(case, *params))
    yield from (terminal.paint(line, "bold") for line in head)
    if judgement.on_top_of:
        yield from labelled("With", ", ".join(judgement.on_top_of), terminal)
    yield from labelled("Basis", basis(judgement), terminal)
    if layout_text(fit):
        yield from labelled("Layout", f"one replica: {layout_text(fit)}", terminal)
    yield from labelled("Memory", memory_line(memory_json(cost)), terminal)
    yield from labelled("Time", time_line(times(judgement)), terminal)
    yield ""
    yield from bottleneck_lines(judgement, terminal)


def bottleneck_lines(judgement: Judgement, terminal: Terminal) -> Iterator[str]:
    """The largest bottlenecks, each with its share as a bar."""
    found = judgement.bottlenecks[:N_BOTTLENECKS]
    if not found:
        return
    yield terminal.paint("What binds", "bold")
    name_width = max(len(b.id) for b in found)
    cells = BAR if terminal.width >= 100 else SHORT_BAR
    for b in found:
        bar = terminal.paint(terminal.bar(b.share, cells), "cyan")
        lead = f"  {100 * b.share:3.0f} % "
        left = len(lead) + cells + 2 + name_width + 2
        text = terminal.wrap(f"{b.statement} ({b.phase})", width=terminal.width - left)
        yield f"{lead}{bar}  {b.id.ljust(name_width)}  {text[0]}"
        yield from (" " * left + line for line in text[1:])


# --- the verdicts --------------------------------------------------------------------------------


def _table(judgement: Judgement, terminal: Terminal, *, is_full: bool, lang: str) -> Iterator[str]:
    rows = sorted((v for v in judgement.verdicts if v.is_applicable), key=rank)
    if not rows:
        return
    metric = goal_metric(judgement)
    cells = [_cells(v, metric) for v in rows]
    heads = HEADS[lang]
    widths = [max(map(len, column)) + MARGIN for column in zip(heads[:5], *cells, strict=True)]
    has_reason = terminal.width - sum(widths) >= LEAST_REASON
    shown = 5 if sum(widths) - MARGIN <= terminal.width else 4
    head = "".join(h.ljust(w) for h, w in zip(heads[:shown], widths, strict=False))
    yield terminal.paint((head + heads[-1] if has_reason else head).rstrip(), "bold")
    number_width = widths[2]
    if terminal.width - sum(widths[:3]) < LEAST_REASON:
        numbers = [_middle(row[2]) for v, row in zip(rows, cells, strict=True) if is_compact(v)]
        number_width = max(map(len, numbers), default=0) + MARGIN
    previous = ""
    for v, row in zip(rows, cells, strict=True):
        if previous and v.decision != previous:
            yield ""
        previous = v.decision
        if is_compact(v) and not is_full:
            yield _compact_row(v, row, [*widths[:2], number_width], terminal)
        elif has_reason:
            yield from _wide_row(v, row, widths, terminal)
        else:
            yield from _narrow_row(v, row[:shown], widths, terminal)


def is_compact(v: Verdict) -> bool:
    """Whether a verdict asks for nothing that numbers could argue for, and so takes one line."""
    if v.technique.family == FAMILY and v.decision != "never":  # the data argue for it
        return v.is_present
    return v.decision == "never" or v.is_present or v.share is None


def _wide_row(
    v: Verdict, row: tuple[str, ...], widths: list[int], terminal: Terminal
) -> Iterator[str]:
    left = sum(widths)
    reason = terminal.wrap(v.reason, width=terminal.width - left)
    yield _painted(v, row, widths, terminal) + (reason[0] if reason else "")
    yield from (" " * left + line for line in reason[1:])


def _narrow_row(
    v: Verdict, row: tuple[str, ...], widths: list[int], terminal: Terminal
) -> Iterator[str]:
    yield _painted(v, row, widths, terminal).rstrip()
    text = v.reason
    if v.flips and len(row) < 5:
        text += f" Would change: {flip_text(v.flips[0])}."
    yield from terminal.wrap(text, indent=widths[0])


def _compact_row(v: Verdict, row: tuple[str, ...], widths: list[int], terminal: Terminal) -> str:
    number = row[2] if len(row[2]) + MARGIN <= widths[2] else _middle(row[2])
    room = terminal.width - sum(widths)
    return _painted(v, (*row[:2], number), widths, terminal) + terminal.plain(short_reason(v, room))


def _middle(effect_text: str) -> str:
    """An effect without its interval."""
    mid, _, rest = effect_text.partition(" [")
    return f"{mid}{rest.partition(']')[2]}"


def short_reason(v: Verdict, room: int) -> str:
    """Why, in one line of `room` columns: the longest of a few ways to say it."""
    if v.predicted is None:
        ways = [v.reason, "no well-defined case without it"]
    elif v.share is None:
        purpose = v.bottleneck.replace("-", " ")
        last = "an experiment can tell" if v.decision == "defer" else "cost cannot see it"
        ways = [v.reason, f"for {purpose}: {last}", f"for {purpose}"]
    else:
        what = _short_outcome(v)
        where = "without it " if v.is_present else ""
        if v.is_present and v.decision != "apply":
            where = "in place; " + where
        ways = [
            v.reason,
            f"{where}{statement(v.bottleneck, v.share)}{what}",
            f"{where}{v.bottleneck} {percent(v.share)}{what}",
            f"{v.bottleneck} {percent(v.share)}: max {v.ceiling:.2f}x" if v.ceiling else "",
            f"{v.bottleneck} {percent(v.share)}",
        ]
    return next((way for way in ways if way and len(way) <= room), ways[-1])


def _short_outcome(v: Verdict) -> str:
    p = v.predicted
    assert p is not None
    if v.is_present:
        return ""
    if p.ratio == float("inf"):
        return "; with it the case no longer fits"
    if not v.has_bottleneck and v.ceiling is not None:
        return f"; max {v.ceiling:.2f}x"
    if p.low > 1:
        return "; it makes things worse"
    if not v.has_bottleneck:
        return "; nothing to relieve"
    return f"; the gain is below {percent(THRESHOLD)}"


def _painted(v: Verdict, cells: tuple[str, ...], widths: list[int], terminal: Terminal) -> str:
    styles = STYLES[v.decision]
    verdict = terminal.paint(terminal.plain(cells[0].ljust(widths[0])), *styles)
    name = cells[1].ljust(widths[1])
    name = terminal.paint(name, "dim") if v.decision == "never" else terminal.paint(name, "bold")
    rest = "".join(
        terminal.plain(cell).ljust(width)
        for cell, width in zip(cells[2:], widths[2:], strict=False)
    )
    return verdict + name + rest


def _cells(v: Verdict, metric: str) -> tuple[str, ...]:
    return (
        mark(v),
        v.technique.id,
        effect(v, metric),
        "in place" if v.is_present else v.technique.adoption,
        flip_text(v.flips[0]) if v.flips else "",
    )


def _not_applicable(judgement: Judgement, terminal: Terminal, *, is_full: bool) -> Iterator[str]:
    rest = [v for v in judgement.verdicts if not v.is_applicable]
    if not rest:
        return
    yield ""
    yield terminal.paint("Not applicable here", "bold")
    families: dict[str, list[Verdict]] = {}
    for v in rest:
        families.setdefault(v.technique.family, []).append(v)
    width = max(len(f) for f in families) + MARGIN
    for family, verdicts in families.items():
        if not is_full:
            names = ", ".join(v.technique.id for v in verdicts)
            lines = terminal.wrap(names, indent=2 + width)
            yield f"  {family.ljust(width)}{lines[0].lstrip()}"
            yield from lines[1:]
            continue
        for v in verdicts:
            yield terminal.paint(f"  {family.ljust(width)}{v.technique.id}", "bold")
            yield from terminal.wrap(v.reason, indent=2 + width)


def _footer(judgement: Judgement, terminal: Terminal) -> Iterable[str]:
    counts = {
        word: sum(v.decision == word and v.is_applicable for v in judgement.verdicts)
        for word in ("apply", "defer", "never")
    }
    in_place = sum(v.is_present for v in judgement.verdicts)
    text = (
        f"{counts['apply']} apply ({in_place} in place), {counts['defer']} defer, "
        f"{counts['never']} never. Effect: how many times better, with its interval; apply needs "
        f"the whole interval beyond {percent(THRESHOLD)}; never: no change of any axis within a "
        "factor of 8 makes it worth it. Max: the gain if its bottleneck vanished for free."
    )
    if any(v.evidence == "predicted" for v in judgement.verdicts):
        hollow = terminal.plain("△")
        text += f" {hollow} and ? : from formulas alone, until measured on this hardware."
    return [terminal.paint(line, "dim") for line in terminal.wrap(text)]


def footer_hints(judgement: Judgement, case: str, *, is_full: bool = False) -> list[str]:
    """The next commands, each with what it gives; `case` is MODEL|CASE with its flags."""
    rows = sorted((v for v in judgement.verdicts if v.is_applicable), key=rank)
    hints = []
    if rows:
        hints.append((f"worthit explain {rows[0].technique.id} --for {case}", "all its numbers"))
    if not is_full:
        hints.append(("--all", "every reason in full"))
    hints.append(("--html report.html", "the same as a page, with figures"))
    n_measured = sum(v.measured is not None for v in judgement.verdicts)
    if n_measured:
        hints.append(("worthit scorecard", f"what experiments measured of {n_measured} of these"))
    checks = dict.fromkeys(v.check_with for v in rows if v.check_with and v.decision != "never")
    hints += [(check, "puts the verdicts to the test") for check in list(checks)[:1]]
    return [
        f"{'Next' if i == 0 else '':<6}{command}   # {gives}"
        for i, (command, gives) in enumerate(hints)
    ]
