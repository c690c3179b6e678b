"""Scores of texts: by an exact check, by the model's own probability, with errors planted.

A verifier is a function from a question and drafts to a number each, larger for better. Of whole
texts it judges the outcome (Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems",
arXiv:2110.14168), of texts that are not whole yet the process (Lightman et al. 2023, "Let's Verify
Step by Step", arXiv:2305.20050).
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Sequence

from worthit.reason.generator import Draft
from worthit.reason.question import Question, ReadAnswer

Score = Callable[[Question, Sequence[Draft]], list[float]]
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
# What follows an equals sign or its word, unless a sum begins there: `is 15`, not `is 7 + 8`.
_STATED = re.compile(
    r"(?:=|\bis|\bequals|\bequal to)\s*\**\s*([-+]?\d[\d,]*(?:\.\d+)?)(?![\d.,]*\d|\s*[-+*x×]\s*\d)"
)
_SUM = re.compile(r"-?\d+(?:\s*[-+*x×]\s*-?\d+)+")
# A product of more digits than this is no arithmetic for a language model.
MAX_DIGITS = 12


def exact(read_answer: ReadAnswer) -> Score:
    """1 for a right answer, 0 for a wrong one or none."""

    def score(question: Question, drafts: Sequence[Draft]) -> list[float]:
        answers = [read_answer(draft.text) for draft in drafts]
        return [float(a is not None and question.is_right(a)) for a in answers]

    return score


def by_logprob(question: Question, drafts: Sequence[Draft]) -> list[float]:
    """The mean log-probability of a token: what a model with no verifier can say of itself."""
    return [draft.logprob / max(draft.n_said, 1) for draft in drafts]


def by_total_logprob(question: Question, drafts: Sequence[Draft]) -> list[float]:
    """The log-probability of the whole text, which favours short ones."""
    return [draft.logprob for draft in drafts]


def noisy(score: Score, rate: float, *, seed: int = 0) -> Score:
    """`score`, a number from 0 to 1, turned round for a share `rate` of all texts.

    Which ones depends on question and text alone: a verifier is wrong about the same text every
    time it is asked, which is what makes searching for its mistakes possible.
    """

    def noised(question: Question, drafts: Sequence[Draft]) -> list[float]:
        return [
            1 - value if chance(seed, question.text, *draft.ids) < rate else value
            for value, draft in zip(score(question, drafts), drafts, strict=True)
        ]

    return noised


def chance(*parts: object) -> float:
    """A number from 0 to below 1 that the parts decide."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


# --- arithmetic -----------------------------------------------------------------------------------


def last_number(text: str) -> str | None:
    """The last number in a text, without commas: what a worked answer ends in.

    >>> last_number("7 + 5 = 12."), last_number("I do not know")
    ('12', None)
    """
    found = NUMBER.findall(text)
    return str(found[-1]).replace(",", "").lstrip("+") if found else None


def stated_number(text: str) -> str | None:
    """The last number that a text says something to be, or else its last number.

    >>> stated_number("7 + 8 = 15, and 7 + 7 is less"), stated_number("15")
    ('15', '15')
    """
    found = _STATED.findall(text)
    return last_number(found[-1]) if found else last_number(text)


def value_of(text: str) -> int | None:
    """The value of the one sum or product in a text, by the usual precedence; None without one.

    >>> value_of("What is 3 + 4 * 2?"), value_of("How are you?")
    (11, None)
    """
    found = _SUM.findall(text)
    if len(found) != 1 or any(len(n) > MAX_DIGITS for n in re.findall(r"\d+", found[0])):
        return None
    # Without the zeros in front that Python would take for another base.
    written = re.sub(r"\b0+(?=\d)", "", re.sub("[x×]", "*", found[0]))
    return _value(ast.parse(written, mode="eval").body)


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Mult):
            return left * right
        return left + right if isinstance(node.op, ast.Add) else left - right
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand)
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int)
    return node.value


def is_value(value: int) -> Callable[[str], bool]:
    """Whether an answer is this number, however it is written."""

    def is_right(answer: str) -> bool:
        try:
            return float(answer) == value
        except ValueError:
            return False

    return is_right
