"""A question whose answer can be checked, and the text that a strategy chose for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from worthit.reason.generator import Draft

# The answer within a text; None where it has none.
ReadAnswer = Callable[[str], str | None]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question.

    Attributes:
        text: as people read it.
        prompt: as the model does.
        is_right: whether an answer is, exactly.
        is_checked: whether anybody knows.
    """

    text: str
    prompt: tuple[int, ...]
    is_right: Callable[[str], bool]
    is_checked: bool = True


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a strategy answers to one question.

    Attributes:
        draft: the text; None where nothing was found.
        answer: what it says; None where it says none.
        n_said: tokens said for this question, those of texts not chosen included.
        drafts: every whole text that it chose from.
        scores: of each, where there were scores.
    """

    question: Question
    draft: Draft | None
    answer: str | None
    n_said: int
    drafts: tuple[Draft, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def is_right(self) -> bool:
        """Whether the answer is."""
        return self.answer is not None and self.question.is_right(self.answer)
