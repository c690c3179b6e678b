"""`worthit quiz`: questions about real cases, whose answers are computed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from worthit.cli import _terminal
from worthit.cli._case import Size

if TYPE_CHECKING:
    from worthit.cli._terminal import Terminal
    from worthit.quiz import Question

LETTERS = "abcd"


@click.command("quiz")
@click.option("--n", type=Size(), default=5, show_default=True, help="How many questions.")
@click.option("--seed", type=int, help="The same seed asks the same.")
@click.option(
    "--answers", "is_open", is_flag=True, help="Print questions and answers; ask nothing."
)
@click.option("--json", "is_json", is_flag=True, help="Print questions and answers as JSON.")
def command(n: int, seed: int | None, is_open: bool, is_json: bool) -> None:
    """Ask about bottlenecks, verdicts and sizes of real cases.

    Answers are computed when they are asked for. Type a letter and Enter; an empty line passes.

    \b
    worthit quiz
    worthit quiz --n 10 --seed 1 --answers
    """
    from worthit.quiz import quiz

    questions = quiz(n, seed=seed)
    if is_json:
        _terminal.show_json(
            {"schema": "worthit.quiz/1", "questions": [q.to_json() for q in questions]}
        )
        return
    terminal = _terminal.of_stdout()
    n_right = 0
    for number, question in enumerate(questions, start=1):
        _terminal.show([*_question_lines(number, question, terminal), ""])
        if is_open:
            _terminal.show([*_answer_lines(question, terminal), ""])
            continue
        said = _ask(len(question.choices))
        is_right = said == question.answer
        n_right += is_right
        word = "Right." if is_right else ("Passed." if said is None else "No.")
        _terminal.show([word, *_answer_lines(question, terminal), ""])
    if not is_open:
        _terminal.show([f"{n_right} of {n} right"])


def _ask(n_choices: int) -> int | None:
    """The choice that was typed; None for an empty line or the end of the input."""
    letters = LETTERS[:n_choices]
    while True:
        sys.stderr.write("> ")
        sys.stderr.flush()
        line = sys.stdin.readline().strip().lower()
        if not line:
            return None
        if line in letters:
            return letters.index(line)
        _terminal.note(f"type one of {', '.join(letters)}, got {line!r}")


def _question_lines(number: int, question: Question, terminal: Terminal) -> list[str]:
    lines = terminal.wrap(f"{number}. {question.text}")
    for letter, choice in zip(LETTERS, question.choices, strict=False):
        lines += terminal.wrap(f"{letter}) {choice}", indent=3)
    return lines


def _answer_lines(question: Question, terminal: Terminal) -> list[str]:
    right = f"{LETTERS[question.answer]}) {question.choices[question.answer]}"
    return [
        *terminal.wrap(f"Answer: {right}", indent=3),
        *terminal.wrap(question.because, indent=3),
        *terminal.wrap(f"See: {question.check}", indent=3),
    ]
