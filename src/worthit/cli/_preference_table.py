"""What was read of preferences, and the way through the tree, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from worthit.cli._terminal import Terminal, labelled
from worthit.judge.judge import Judgement
from worthit.judge.preferences import OUTLINE, PreferenceAdvice
from worthit.report.preferences import fact_rows

LABEL = 16


def preference_lines(judgement: Judgement, terminal: Terminal) -> Iterator[str]:
    """Facts of the data and the advice; nothing where the case has no preferences."""
    advice, facts = judgement.preferences, judgement.case.data.preferences
    if advice is None or facts is None:
        return
    yield terminal.paint("Preferences", "bold")
    for name, text in fact_rows(facts):
        yield from labelled(name, text, terminal, width=LABEL)
    yield ""
    yield from advice_lines(advice, terminal)
    yield ""


def advice_lines(advice: PreferenceAdvice, terminal: Terminal) -> Iterator[str]:
    """The way through the tree, question by question, and what stands at its end."""
    yield terminal.paint("Which method fits these data", "bold")
    for i, step in enumerate(advice.steps):
        text = f"{step.question} {step.answer}: {step.because}"
        yield from labelled("Because" if i == 0 else "", text, terminal, width=LABEL)
    yield from labelled(
        "So", " or ".join(advice.methods) or "none, as they are", terminal, width=LABEL
    )
    for name, setting in advice.settings.items():
        yield from labelled("With", f"{name}: {setting}", terminal, width=LABEL)
    for i, caution in enumerate(advice.cautions):
        yield from labelled("Mind" if i == 0 else "", caution, terminal, width=LABEL)


def outline_lines(terminal: Terminal) -> Iterator[str]:
    """The tree without data."""
    for i, line in enumerate(OUTLINE):
        yield from labelled("Which one" if i == 0 else "", line, terminal, width=LABEL)
