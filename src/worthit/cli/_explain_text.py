"""One technique as text: what it is for, what it changes, what it takes, what is known about it."""

from __future__ import annotations

from collections.abc import Iterator

from worthit.cli._preference_table import outline_lines, preference_lines
from worthit.cli._terminal import Terminal, labelled
from worthit.cost.bottleneck import percent
from worthit.cost.record import fit_json
from worthit.judge.judge import Judgement, Verdict
from worthit.judge.preferences import FAMILY
from worthit.judge.verdict import THRESHOLD
from worthit.judge.words import METRIC_NAMES, quantity, three
from worthit.report.records import change_of, text_of
from worthit.report.words import (
    basis,
    case_line,
    effect,
    flip_text,
    goal_metric,
    mark,
    misfit_line,
    param_counts,
)
from worthit.scorecard.evidence import sentence
from worthit.techniques import Technique

LABEL = 14
WORDS = {
    "en": {
        "relieves": "Relieves",
        "changes": "What changes",
        "adoption": "Adoption",
        "nothing": "Nothing when",
        "pitfalls": "Pitfalls",
        "evidence": "Evidence",
        "sources": "Sources",
        "code": "Code",
        "added": "added",
        "removed": "removed",
        "changed": "changed",
    },
    "es": {
        "relieves": "Alivia",
        "changes": "Qué cambia",
        "adoption": "Adopción",
        "nothing": "Nada cuando",
        "pitfalls": "Trampas",
        "evidence": "Evidencia",
        "sources": "Fuentes",
        "code": "Código",
        "added": "añadido",
        "removed": "quitado",
        "changed": "cambiado",
    },
}


def explain_lines(
    t: Technique, judgement: Judgement | None, terminal: Terminal, *, lang: str = "en"
) -> list[str]:
    """Everything that `worthit explain` says."""
    words = WORDS[lang]
    lines = [terminal.paint(f"{t.id}: {t.name}", "bold") + f"   ({t.family})", ""]
    if judgement is not None:
        lines += [*_verdict_lines(judgement, terminal), ""]
        lines += preference_lines(judgement, terminal)
    orientation = t.orientation.get(lang) or t.orientation.get("en", "")
    if orientation:
        lines += [*terminal.wrap(orientation), ""]

    def add(key: str, text: str) -> None:
        lines.extend(labelled(words[key], text, terminal, width=LABEL))

    add("relieves", f"{', '.join(t.relieves)}: {t.bottleneck}")
    if t.diagram:
        lines += ["", terminal.paint(words["changes"], "bold")]
        lines += diagram_lines(t.diagram, terminal, words)
        lines.append("")
    add("adoption", f"{t.adoption}: {t.cost_of_adoption}")
    add("nothing", t.nothing_when)
    if t.family == FAMILY and (judgement is None or judgement.preferences is None):
        lines += outline_lines(terminal)
    for key, entries in (
        ("pitfalls", t.pitfalls),
        ("evidence", [f"{e.claim} ({e.source.cite}, {e.source.id})" for e in t.evidence]),
        ("sources", [str(source) for source in t.sources]),
    ):
        for i, entry in enumerate(entries):
            lines += labelled(words[key] if i == 0 else "", entry, terminal, width=LABEL)
    add("code", ", ".join(path for path in (t.module, t.experiment) if path))
    return lines


def diagram_lines(
    steps: tuple[str, ...], terminal: Terminal, words: dict[str, str]
) -> Iterator[str]:
    """The data path from top to bottom, one box a step, marked where the technique acts."""
    texts = [text_of(step) for step in steps]
    room = min(max(map(len, texts)), terminal.width - 24)
    marks = {"added": "+", "removed": "-", "changed": "~", "same": " "}
    colors = {"added": ("green",), "removed": ("red",), "changed": ("yellow",), "same": ()}
    for i, (step, text) in enumerate(zip(steps, texts, strict=True)):
        change = change_of(step)
        if i:
            yield "    " + terminal.plain("│")
        word = "" if change == "same" else f"  {words[change]}"
        for j, line in enumerate(terminal.wrap(text, width=max(room, 20)) or [""]):
            mark_ = marks[change]
            row = f"  {mark_} {line.ljust(room)}{word if j == 0 else ''}"
            yield terminal.paint(row.rstrip(), *colors[change])


def _verdict_lines(judgement: Judgement, terminal: Terminal) -> Iterator[str]:
    v = judgement.verdicts[0]
    misfit = misfit_line(fit_json(judgement.cost))
    if misfit:
        yield from (terminal.paint(line, "bold", "red") for line in terminal.wrap(misfit))
    params = param_counts(judgement)
    yield from terminal.wrap("For  " + case_line(judgement.case, *params))
    yield ""
    in_place = " (in place)" if v.is_present else ""
    yield terminal.paint(terminal.plain(f"{mark(v)}{in_place}"), "bold")
    yield from labelled("Because", v.reason, terminal, width=LABEL)
    for label, text in _numbers(v, judgement):
        yield from labelled(label, text, terminal, width=LABEL)
    for i, flip in enumerate(v.flips):
        near = f" ({three(max(flip.factor, 1 / flip.factor))}x away)" if flip.factor != 1 else ""
        label = "Would change" if i == 0 else ""
        yield from labelled(label, flip_text(flip) + near, terminal, width=LABEL)
    if not v.flips:
        yield from labelled(
            "Would change", "at no point within a factor of 8 on any axis", terminal, width=LABEL
        )
    yield from labelled("Basis", basis(judgement), terminal, width=LABEL)
    if v.measured is not None:
        yield from labelled("Measured", sentence(v.measured), terminal, width=LABEL)
    yield from labelled("Check with", v.check_with, terminal, width=LABEL)


def _numbers(v: Verdict, judgement: Judgement) -> Iterator[tuple[str, str]]:
    if v.share is not None:
        has = "binds" if v.has_bottleneck else "does not bind"
        yield "Bottleneck", f"{v.bottleneck}: {percent(v.share)}, {has}"
    if v.ceiling is not None:
        yield "Ceiling", f"{v.ceiling:.3g}x if the technique removed it for free"
    p = v.predicted
    if p is not None:
        before, after = quantity(p.metric, p.before), quantity(p.metric, p.after)
        yield "Predicted", f"{METRIC_NAMES[p.metric]}: {before} without it, {after} with it"
        metric = goal_metric(judgement)
        yield "Effect", f"{effect(v, metric)}; apply needs all of it beyond {percent(THRESHOLD)}"
