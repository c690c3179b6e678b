"""The offline page: one HTML file with everything in it, readable without scripts or a network.

Every figure has a table beside it; every verdict a shape, a word and a colour; every text from
outside is escaped. Equal judgements give equal pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from worthit.cost.bottleneck import percent
from worthit.cost.record import fit_json, ledger_json, memory_json
from worthit.judge.judge import CurvePoint, Judgement, Verdict
from worthit.judge.verdict import THRESHOLD
from worthit.judge.words import METRIC_NAMES, count, duration, quantity, size, three
from worthit.report import pieces
from worthit.report import words as say
from worthit.report._text import TEXTS
from worthit.report.diagram import block_diagram
from worthit.report.figures import RooflinePoint, flip_plot, roofline
from worthit.report.preferences import preference_section
from worthit.report.records import change_of, text_of
from worthit.scorecard.evidence import sentence

# Plots are for the verdicts that numbers argue for; the others have their tables.
N_PLOTS = 14
MEMORY_PARTS = (
    "weights_bytes",
    "cache_bytes",
    "gradient_bytes",
    "optimizer_bytes",
    "activation_bytes",
)
Words = dict[str, str]


def page(judgement: Judgement, *, command: str, lang: str = "en") -> str:
    """The report on `judgement` as one HTML document.

    Args:
        judgement: made `with_curves`, or the page has no flip plots.
        command: what reproduces it, shown at the end.
        lang: `en` or `es`, for the page's own words and the techniques' orientation.
    """
    t = TEXTS[lang]
    ledger = ledger_json(judgement.cost)
    name = judgement.case.name or judgement.case.model.name
    sections = [
        pieces.section("binds", t["binds"], _bottlenecks(judgement, t)),
        '<div class="pair">\n',
        pieces.section("memory", t["memory"], _memory(judgement, t)),
        pieces.section("time", t["time"], _times(judgement, t)),
        "</div>\n",
        preference_section(judgement, t),
        pieces.section("verdicts", t["verdicts"], _verdicts(judgement, t)),
        pieces.section("roofline", t["roofline"], _roofline(judgement, ledger, t)),
        pieces.section("techniques", t["techniques"], _techniques(judgement, t, lang)),
        pieces.section("ledger", t["ledger"], _ledger(ledger, t)),
        pieces.section("reproduce", t["reproduce"], _reproduce(command, t)),
    ]
    data = ("preferences",) if judgement.preferences is not None else ()
    links = ("binds", *data, "verdicts", "roofline", "techniques", "ledger", "reproduce")
    return pieces.document(
        t,
        lang=lang,
        title=f"{t['title']} {name}",
        heading=f'{escape(t["title"])} <span class="model">{escape(name)}</span>',
        links=[(key, t[key]) for key in links],
        skip_to="verdicts",
        head=_case(judgement, t),
        body="".join(sections),
    )


# --- the case ------------------------------------------------------------------------------------


def _case(judgement: Judgement, t: Words) -> str:
    fit = fit_json(judgement.cost)
    misfit = say.misfit_line(fit)
    alert = f'<p class="alert" role="alert"><b>✖</b> {escape(misfit)}</p>' if misfit else ""
    entries = {
        t["case"]: say.case_line(judgement.case, *say.param_counts(judgement)),
        t["layout"]: say.layout_text(fit),
        t["on_top_of"]: ", ".join(judgement.on_top_of),
        t["basis"]: say.basis(judgement),
        t["notes"]: " ".join(f"{w[:1].upper()}{w[1:]}." for w in judgement.case.warnings),
    }
    return f"{alert}{pieces.facts(entries)}"


def _bottlenecks(judgement: Judgement, t: Words) -> str:
    rows = [
        (
            f'<span class="meter" aria-hidden="true"><span style="width:{100 * b.share:.1f}%">'
            f"</span></span>{escape(percent(b.share))}",
            f"<b>{escape(b.id)}</b>",
            escape(b.phase),
            escape(b.statement),
        )
        for b in judgement.bottlenecks
    ]
    heads = (t["share"], t["bottleneck"], t["phase"], t["meaning"])
    return pieces.table(heads, rows, label=t["binds"], kind="binds")


def _memory(judgement: Judgement, t: Words) -> str:
    memory = memory_json(judgement.cost)
    total, capacity = memory["total_bytes"], memory["capacity_bytes"]
    whole = max(total, capacity)
    parts = [(key, memory[key]) for key in MEMORY_PARTS if memory[key] is not None]
    segments = []
    for key, value in parts:
        name = t[key] if value > 0.09 * whole else ""
        segments.append(
            f'<span class="seg {key[:-6]}" style="width:{100 * value / whole:.3f}%">'
            f"{escape(name)}</span>"
        )
    rest = capacity - total
    if rest > 0:
        name = t["free"] if rest > 0.09 * whole else ""
        segments.append(
            f'<span class="seg free" style="width:{100 * rest / whole:.3f}%">{escape(name)}</span>'
        )
    mark = (
        f'<span class="limit" style="left:{100 * capacity / whole:.3f}%" aria-hidden="true"></span>'
        if rest < 0
        else ""
    )
    last = t["free"] if rest >= 0 else t["over"]
    summary = f"{size(total)} / {size(capacity)} {t['usable']}, {size(abs(rest))} {last}"
    bar = (
        f'<div class="memory" role="img" aria-label="{escape(summary)}">{"".join(segments)}{mark}'
        "</div>"
    )
    rows = [
        (
            f'<span class="swatch {key[:-6]}" aria-hidden="true"></span>{escape(t[key])}',
            size(value),
            escape(percent(value / capacity)),
        )
        for key, value in parts
    ]
    rows.append((f"<b>{escape(last)}</b>", size(abs(rest)), escape(percent(abs(rest) / capacity))))
    table = pieces.table(
        (t["part"], t["size"], t["of_usable"]), rows, label=t["memory"], numbers=(1, 2)
    )
    return f"<figure>{bar}<figcaption>{escape(summary)}</figcaption>{table}</figure>"


def _times(judgement: Judgement, t: Words) -> str:
    times = say.times(judgement)
    if not any(times.values()):
        return f"<p>{escape(t['no_time'])}</p>"
    rows = []
    for key in ("ttft_s", "tpot_s", "request_s", "train_step_s", "train_total_s", "tokens_per_s"):
        value = times.get(key)
        if value:
            show = count if key == "tokens_per_s" else duration
            rows.append(
                (
                    escape(t[key]),
                    show(value["mid"]),
                    f"{show(value['low'])} – {show(value['high'])}",
                )
            )
    heads = (t["what"], t["middle"], t["interval"])
    return pieces.table(heads, rows, label=t["time"], numbers=(1, 2))


# --- the verdicts --------------------------------------------------------------------------------


def _verdicts(judgement: Judgement, t: Words) -> str:
    ordered = sorted(judgement.verdicts, key=lambda v: (not v.is_applicable, say.rank(v)))
    metric = say.goal_metric(judgement)
    rows = "".join(_verdict_row(v, i, metric, t) for i, v in enumerate(ordered))
    kinds = ("apply", "defer", "never", "not_applicable")
    counts = {kind: sum(_kind(v) == kind for v in ordered) for kind in kinds}
    buttons = f'<button type="button" data-show="" aria-pressed="true">{escape(t["all"])}</button>'
    buttons += "".join(
        f'<button type="button" data-show="{kind}" aria-pressed="false">'
        f"<span class={kind}>{_SHAPES[kind]}</span> {escape(t[kind])} {counts[kind]}</button>"
        for kind in kinds
        if counts[kind]
    )
    heads = ("verdict", "technique", "effect", "adoption", "change", "because")
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button" class="sort" data-column="{i}">'
        f"{escape(t[key])}</button></th>"
        for i, key in enumerate(heads)
    )
    legend = t["legend"].format(threshold=percent(THRESHOLD))
    return f"""<div class="tools js" role="search"><label for="filter">{escape(t["filter"])}</label>
<input type="search" id="filter" placeholder="{escape(t["filter_hint"])}" autocomplete="off">
<span class="kinds">{buttons}</span>
<output id="shown" for="filter" aria-live="polite" data-word="{escape(t["shown"])}"></output></div>
<table class="verdicts" role="table" id="verdict-table"><thead role="rowgroup">\
<tr role="row">{head}</tr></thead>
<tbody role="rowgroup">{rows}</tbody></table>
<p class="legend">{escape(legend)}</p>"""


_SHAPES = {"apply": "△", "defer": "◆", "never": "■", "not_applicable": "–"}


def _kind(v: Verdict) -> str:
    return v.decision if v.is_applicable else "not_applicable"


def _verdict_row(v: Verdict, order: int, metric: str, t: Words) -> str:
    kind = _kind(v)
    mark = say.mark(v) if v.is_applicable else f"– {t['not_applicable']}"
    gain = _sort_gain(v)
    effect = say.effect(v, metric) if v.is_applicable else ""
    adoption = t["in_place"] if v.is_present else v.technique.adoption
    level = ("drop-in", "calibrate", "finetune", "retrain").index(v.technique.adoption)
    cells = (
        ("verdict", f"{order}", f'<span class="{kind}">{escape(mark)}</span>'),
        ("technique", v.technique.id, _link(v)),
        ("effect", f"{gain:.6f}", escape(effect)),
        ("adoption", f"{-1 if v.is_present else level}", escape(adoption)),
        ("change", "", escape(say.flip_text(v.flips[0])) if v.flips else ""),
        ("because", "", escape(v.reason)),
    )
    body = "".join(
        f'<td role="cell" data-label="{escape(t[key])}" data-sort="{escape(sort)}">{html}</td>'
        for key, sort, html in cells
    )
    return f'<tr role="row" data-kind="{kind}">{body}</tr>\n'


def _link(v: Verdict) -> str:
    name = escape(v.technique.id)
    family = escape(v.technique.family)
    return f'<a href="#t-{name}"><b>{name}</b></a> <span class="family">{family}</span>'


def _sort_gain(v: Verdict) -> float:
    if v.predicted is None or v.predicted.ratio == math.inf:
        return -1.0
    return 1e9 if v.predicted.ratio == 0 else 1 / v.predicted.ratio


# --- the roofline --------------------------------------------------------------------------------


def _roofline(judgement: Judgement, ledger: list[dict[str, Any]], t: Words) -> str:
    device = judgement.case.hardware.device
    points = roofline_points(ledger)
    # What runs outside the matrix units is no number format and has no roof of its own.
    formats = dict.fromkeys(
        row["dtype"] for row in ledger if row["flops"] and row["dtype"] in device.flops_per_s
    )
    peaks = {device.peak(name): name for name in formats}
    named = [(f"{name} {count(peak)}FLOP/s", peak) for peak, name in sorted(peaks.items())]
    named.reverse()
    title = f"{t['roofline']}: {device.name}"
    drawing = roofline(
        points,
        peaks=named or [("", 1.0)],
        bytes_per_s=device.mem_bytes_per_s,
        ident="roof",
        title=title,
        labels=t | {"bandwidth": f"{count(device.mem_bytes_per_s)}B/s"},
    )
    rows = [
        (
            escape(p.phase),
            f"<b>{escape(p.name)}</b>" if p.is_total else escape(p.name),
            three(p.intensity),
            f"{count(p.flops_per_s)}FLOP/s",
            escape(percent(p.flops_per_s / named[0][1])) if named else "",
            escape(percent(p.time_share)),
        )
        for p in points
    ]
    heads = (
        t["phase"],
        t["operation"],
        t["intensity"],
        t["achieved"],
        "%",
        t["time"],
    )
    table = pieces.table(heads, rows, label=t["roofline"], numbers=(2, 3, 4, 5))
    caption = f"{device.name}. {t['roofline_caption']}"
    return pieces.figure(drawing, caption, table, t, label=title)


def roofline_points(ledger: list[dict[str, Any]]) -> list[RooflinePoint]:
    """Every operation that computes, then each phase in all."""
    points = []
    for phase in dict.fromkeys(row["phase"] for row in ledger):
        rows = [row for row in ledger if row["phase"] == phase]
        seconds = sum(row["time_s"] for row in rows)
        for row in rows:
            point = _point(row["op"], phase, [row], seconds)
            if point:
                points.append(point)
        total = _point(phase, phase, rows, seconds, is_total=True)
        if total:
            points.append(total)
    return sorted(points, key=lambda p: not p.is_total)


def _point(
    name: str, phase: str, rows: list[dict[str, Any]], whole: float, *, is_total: bool = False
) -> RooflinePoint | None:
    flops = sum(row["flops"] * row["count"] for row in rows)
    moved = sum(row["bytes"] * row["count"] for row in rows)
    seconds = sum(row["time_s"] for row in rows)
    if not (flops > 0 and moved > 0 and 0 < seconds < math.inf):
        return None
    return RooflinePoint(
        name=name,
        phase=phase,
        intensity=flops / moved,
        flops_per_s=flops / seconds,
        time_share=seconds / whole,
        is_total=is_total,
    )


def _ledger(ledger: list[dict[str, Any]], t: Words) -> str:
    rows = [
        (
            escape(row["phase"]),
            escape(row["op"]),
            escape(row["layer_kind"]),
            count(row["count"]),
            count(row["flops"] * row["count"]),
            size(row["bytes"] * row["count"]),
            duration(row["time_s"]),
            escape(row["bound"]),
        )
        for row in ledger
    ]
    heads = (
        t["phase"],
        t["operation"],
        t["layer"],
        t["count"],
        "FLOPs",
        "Bytes",
        t["time"],
        t["bound"],
    )
    table = pieces.table(heads, rows, label=t["ledger"], numbers=range(3, 7))
    return f"<p>{escape(t['ledger_caption'])}</p>{table}"


# --- the techniques ------------------------------------------------------------------------------


def _techniques(judgement: Judgement, t: Words, lang: str) -> str:
    ordered = sorted(judgement.verdicts, key=lambda v: (not v.is_applicable, say.rank(v)))
    plotted = [
        v.technique.id
        for v in ordered
        if v.decision in ("apply", "defer") and v.share is not None and moving(v)
    ][:N_PLOTS]
    cards = "".join(
        _card(v, judgement, t, lang, has_plot=v.technique.id in plotted) for v in ordered
    )
    return f"<p>{escape(t['techniques_hint'])}</p>\n{cards}"


def moving(v: Verdict) -> dict[str, Sequence[CurvePoint]]:
    """The curves on which the gain is not the same everywhere."""
    found: dict[str, Sequence[CurvePoint]] = {}
    for axis, points in v.curves.items():
        ratios = {f"{p.ratio:.3g}" for p in points if math.isfinite(p.ratio) and p.ratio > 0}
        if len(ratios) > 1:
            found[axis] = points
    return found


def _card(v: Verdict, judgement: Judgement, t: Words, lang: str, *, has_plot: bool) -> str:
    technique = v.technique
    ident = f"t-{escape(technique.id)}"
    kind = _kind(v)
    mark = say.mark(v) if v.is_applicable else f"– {t['not_applicable']}"
    orientation = technique.orientation.get(lang) or technique.orientation.get("en", "")
    effect = say.effect(v, say.goal_metric(judgement)) if v.is_applicable else ""
    english = ' lang="en"' if lang != "en" else ""
    blocks = [
        f"<p>{escape(orientation)}</p>",
        f"<p{english}><b>{escape(t['because'])}:</b> {escape(v.reason)}</p>",
        _numbers(v, t),
    ]
    if has_plot:
        blocks.append(_flip_figure(v, judgement, t, ident))
    if technique.diagram:
        blocks.append(_diagram(v, t, ident))
    facts = (
        ("relieves", [f"{', '.join(technique.relieves)}: {technique.bottleneck}"]),
        ("nothing_when", [technique.nothing_when]),
        ("cost_of_adoption", [f"{technique.adoption}: {technique.cost_of_adoption}"]),
        ("pitfalls", list(technique.pitfalls)),
        ("evidence", [f"{e.claim} ({e.source.cite}, {e.source.id})" for e in technique.evidence]),
        ("sources", [str(source) for source in technique.sources]),
    )
    blocks += [_facts(t[key], entries, english) for key, entries in facts if entries]
    return (
        f'<details class="card" id="{ident}"><summary><span class="{kind}">{escape(mark)}</span> '
        f"<b>{escape(technique.id)}</b> <span class=name>{escape(technique.name)}</span> "
        f"<span class=gain>{escape(effect)}</span></summary>\n{''.join(blocks)}</details>\n"
    )


def _facts(title: str, entries: list[str], english: str) -> str:
    items = "".join(f"<li>{escape(entry)}</li>" for entry in entries)
    return f"<h4>{escape(title)}</h4><ul{english}>{items}</ul>"


def _numbers(v: Verdict, t: Words) -> str:
    rows = []
    if v.share is not None:
        rows.append((escape(t["share"]), f"{escape(v.bottleneck)}: {escape(percent(v.share))}"))
    if v.ceiling is not None:
        rows.append((escape(t["at_most"]), f"{v.ceiling:.2f}x {escape(t['ceiling'])}"))
    p = v.predicted
    if p is not None:
        before, after = quantity(p.metric, p.before), quantity(p.metric, p.after)
        rows.append((escape(METRIC_NAMES[p.metric]), f"{escape(before)} → {escape(after)}"))
    rows += [(escape(t["change"]), escape(say.flip_text(flip))) for flip in v.flips]
    if v.measured is not None:
        rows.append((escape(t["measured"]), escape(sentence(v.measured))))
    if v.check_with:
        rows.append((escape(t["check_with"]), f"<code>{escape(v.check_with)}</code>"))
    if not rows:
        return ""
    return (
        "<dl class=numbers>"
        + "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in rows)
        + "</dl>"
    )


def _flip_figure(v: Verdict, judgement: Judgement, t: Words, ident: str) -> str:
    curves = moving(v)
    here = {axis: judgement.cost.points.value_of_case(axis) for axis in curves}
    title = f"{v.technique.id}: {t['flips']}"
    drawing = flip_plot(curves, here, ident=f"{ident}-f", title=title, labels=t)
    rows = [
        (
            escape(axis),
            three(p.value) + (f" ({escape(t['this_case'])})" if here[axis] == p.value else ""),
            _times_better(p.ratio),
            f"{_times_better(p.high)} – {_times_better(p.low)}",
            escape(p.becomes),
        )
        for axis, points in curves.items()
        for p in points
    ]
    heads = (t["axis"], t["value"], t["gain"], t["interval"], t["becomes"])
    table = pieces.table(heads, rows, label=title, numbers=(1, 2, 3))
    return f"<h4>{escape(t['flips'])}</h4>" + pieces.figure(
        drawing, t["flips_caption"], table, t, label=title
    )


def _times_better(ratio: float) -> str:
    if ratio == math.inf:
        return "0"
    return "∞" if ratio == 0 else f"{say.factor(ratio)}x"


def _diagram(v: Verdict, t: Words, ident: str) -> str:
    steps = v.technique.diagram
    title = f"{v.technique.id}: {t['changes']}"
    drawing = block_diagram(steps, ident=f"{ident}-d", title=title, words=t)
    rows = [(escape(text_of(step)), escape(t[change_of(step)])) for step in steps]
    table = pieces.table((t["step"], t["changes"]), rows, label=title)
    return f"<h4>{escape(t['changes'])}</h4>" + pieces.figure(drawing, "", table, t).replace(
        "<figcaption></figcaption>", ""
    )


def _reproduce(command: str, t: Words) -> str:
    from worthit import __version__

    return (
        f"<p>{escape(t['reproduce_hint'])}</p><pre><code>{escape(command)}</code></pre>"
        f"<p>worthit {__version__}</p>"
    )
