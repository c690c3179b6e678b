"""The judge's table: what does not fit, the case, what binds, and a verdict a row.

From wide to narrow: a wide terminal has the reason in a column of its own, a narrow one under the
row. NEVER rows are compact: the reason's first sentences, as many as fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from worthit.cli._summary import (
    case_line,
    labelled,
    layout_text,
    memory_line,
    misfit_line,
    time_line,
)
from worthit.cli._terminal import Terminal
from worthit.cost.record import fit_json, interval, memory_json
from worthit.judge.bottleneck import percent
from worthit.judge.judge import Judgement, Verdict
from worthit.judge.verdict import THRESHOLD, Flip
from worthit.judge.words import three

N_BOTTLENECKS = 6
BAR = 20
MARGIN = 2
# Columns of the reason below which it stands under its row.
LEAST_REASON = 44
# Metrics that are not the time of the service say what they are about.
METRIC_LABELS = {
    "ttft_s": "ttft",
    "stall_s": "stall",
    "memory_bytes": "memory",
    "context_shortfall": "context",
}
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
    params = _params(judgement)
    head = terminal.wrap(case_line(case, *params))
    yield from (terminal.paint(line, "bold") for line in head)
    if judgement.on_top_of:
        yield from labelled("With", ", ".join(judgement.on_top_of), terminal)
    yield from labelled("Basis", basis(judgement), terminal)
    if layout_text(fit):
        yield from labelled("Layout", f"one replica: {layout_text(fit)}", terminal)
    yield from labelled("Memory", memory_line(memory_json(cost), terminal), terminal)
    yield from labelled("Time", time_line(_times(judgement)), terminal)
    yield ""
    yield from bottleneck_lines(judgement, terminal)


def _params(judgement: Judgement) -> tuple[float, float]:
    from worthit.cost.params import count_params

    params = count_params(judgement.case.model)
    return float(params.total), float(params.active)


def _times(judgement: Judgement) -> dict[str, dict[str, float] | None]:
    cost = judgement.cost
    if not bool(cost.fits[0]):
        return {}
    names = ("ttft_s", "tpot_s", "request_s", "train_total_s")
    found = {name: interval(getattr(cost, name)) for name in names if hasattr(cost, name)}
    if hasattr(cost, "s_per_token"):
        found["tokens_per_s"] = interval(1 / cost.s_per_token)
    if hasattr(cost, "step_s") and hasattr(cost, "train_total_s"):
        found["train_step_s"] = interval(cost.step_s)
    return found


def basis(judgement: Judgement) -> str:
    """What stands behind the numbers."""
    efficiency = judgement.case.hardware.device.efficiency
    if efficiency.is_calibrated:
        return f"formulas with efficiencies measured on this machine ({efficiency.source})"
    return f"formulas, not calibrated here; efficiencies: {efficiency.source}"


def bottleneck_lines(judgement: Judgement, terminal: Terminal) -> Iterator[str]:
    """The largest bottlenecks, each with its share as a bar."""
    found = judgement.bottlenecks[:N_BOTTLENECKS]
    if not found:
        return
    yield terminal.paint("What binds", "bold")
    name_width = max(len(b.id) for b in found)
    for b in found:
        bar = terminal.paint(terminal.bar(b.share, BAR), "cyan")
        lead = f"  {100 * b.share:3.0f} % "
        left = len(lead) + BAR + 2 + name_width + 2
        text = terminal.wrap(f"{b.statement} ({b.phase})", width=terminal.width - left)
        yield f"{lead}{bar}  {b.id.ljust(name_width)}  {text[0]}"
        yield from (" " * left + line for line in text[1:])


# --- the verdicts --------------------------------------------------------------------------------


def _table(judgement: Judgement, terminal: Terminal, *, is_full: bool, lang: str) -> Iterator[str]:
    rows = sorted((v for v in judgement.verdicts if v.is_applicable), key=_rank)
    if not rows:
        return
    goal_metric = _goal_metric(judgement)
    cells = [_cells(v, goal_metric) for v in rows]
    heads = HEADS[lang]
    widths = [
        max(len(heads[i]), max(len(row[i]) for row in cells)) + MARGIN
        for i in range(len(heads) - 1)
    ]
    before_flip = sum(widths[:4])
    room = terminal.width - before_flip - widths[4]
    is_wide = room >= LEAST_REASON
    shown = len(heads) if is_wide else 4
    head = "".join(h.ljust(w) for h, w in zip(heads[:shown], widths, strict=False))
    if is_wide:
        head += heads[-1]
    yield terminal.paint(head.rstrip(), "bold")
    for v, row in zip(rows, cells, strict=True):
        yield from (
            _wide_row(v, row, widths, terminal, is_full)
            if is_wide
            else _narrow_row(v, row, widths, terminal, is_full)
        )


def _wide_row(
    v: Verdict, row: tuple[str, ...], widths: list[int], terminal: Terminal, is_full: bool
) -> Iterator[str]:
    left = sum(widths)
    if v.decision == "never" and not is_full:
        # Nothing changes a NEVER: its reason takes the column of the flip too.
        left -= widths[4]
    reason = terminal.wrap(_reason(v, terminal.width - left, is_full), width=terminal.width - left)
    shown = 4 if v.decision == "never" and not is_full else 5
    yield _painted(v, row[:shown], widths, terminal) + (reason[0] if reason else "")
    yield from (" " * left + line for line in reason[1:])


def _narrow_row(
    v: Verdict, row: tuple[str, ...], widths: list[int], terminal: Terminal, is_full: bool
) -> Iterator[str]:
    yield _painted(v, row[:4], widths, terminal).rstrip()
    indent = widths[0]
    text = _reason(v, terminal.width - indent, is_full)
    if row[4]:
        text += f" Would be: {row[4]}."
    yield from terminal.wrap(text, indent=indent)


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


def _rank(v: Verdict) -> tuple[int, bool, float, str]:
    order = ("apply", "defer", "never").index(v.decision)
    return order, v.is_present, v.predicted.ratio if v.predicted else 1.0, v.technique.id


def _goal_metric(judgement: Judgement) -> str:
    from worthit.judge.judge import GOAL_METRIC

    return GOAL_METRIC[judgement.case.effective_goal]


def _cells(v: Verdict, goal_metric: str) -> tuple[str, ...]:
    return (
        mark(v),
        v.technique.id + (" (in place)" if v.is_present else ""),
        effect(v, goal_metric),
        v.technique.adoption,
        flip_text(v.flips[0]) if v.flips else "",
    )


def mark(v: Verdict) -> str:
    """Shape and word of a verdict; hollow and with `?` while only formulas stand behind it."""
    if v.decision == "apply":
        return "△ apply?" if v.evidence == "predicted" else "▲ apply"
    return "◆ defer" if v.decision == "defer" else "■ never"


def effect(v: Verdict, goal_metric: str) -> str:
    """The speed-up with its interval, and of what where that is not the case's own goal."""
    p = v.predicted
    if p is None:
        return "no number"
    label = METRIC_LABELS.get(p.metric, "") if p.metric != goal_metric else ""
    if p.ratio == 0:
        text = "makes it fit"
    elif p.ratio == float("inf"):
        text = "no longer fits"
    else:
        mid, low, high = (factor(value) for value in (p.ratio, p.high, p.low))
        text = f"{mid}x [{low}-{high}]" if low != high else f"{mid}x"
    return f"{text} {label}".rstrip()


def factor(ratio: float) -> str:
    """How many times better, to the precision at which the model means anything."""
    if ratio == 0:
        return "inf"
    value = 1 / ratio
    return f"{value:.2f}" if value < 10 else three(value)


def flip_text(flip: Flip) -> str:
    """`apply at prompt >= 32000`."""
    if isinstance(flip.value, str):
        return f"{flip.becomes} at {flip.axis.replace('_', ' ')} {flip.value}"
    sign = ">=" if flip.factor > 1 else "<="
    value = f"{flip.value:.2g}x" if flip.axis == "model size" else f"{flip.value:.0f}"
    return f"{flip.becomes} at {flip.axis} {sign} {value}"


def _reason(v: Verdict, room: int, is_full: bool) -> str:
    if is_full or (v.decision != "never" and not v.is_present):
        return v.reason
    return _first_sentences(v.reason, room)


_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def _first_sentences(text: str, room: int) -> str:
    """As many whole sentences as one line takes; the first in any case."""
    sentences = _SENTENCE.split(text)
    shown = sentences[0]
    for sentence in sentences[1:]:
        if len(shown) + 1 + len(sentence) > room:
            break
        shown = f"{shown} {sentence}"
    return shown


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
        "factor of 8 makes it worth it."
    )
    if any(v.evidence == "predicted" for v in judgement.verdicts):
        hollow = terminal.plain("△")
        text += f" {hollow} and ? : from formulas alone, until measured on this hardware."
    return [terminal.paint(line, "dim") for line in terminal.wrap(text)]


def footer_hints(
    judgement: Judgement, target: str, *, is_full: bool = False, lang: str = "en"
) -> list[str]:
    """The next commands."""
    rows = sorted((v for v in judgement.verdicts if v.is_applicable), key=_rank)
    hints = []
    if rows:
        hints.append(f"worthit explain {rows[0].technique.id} --for {target}   every number of one")
    if not is_full:
        hints.append("--all   every reason in full       --html report.html   the same as a page")
    checks = dict.fromkeys(v.check_with for v in rows if v.check_with and v.decision != "never")
    hints += [f"{check}   puts the verdicts to the test" for check in list(checks)[:1]]
    if not hints:
        return []
    return [("Next  " if i == 0 else "      ") + hint for i, hint in enumerate(hints)]
