"""Preferences over English verb forms, in chat: right over wrong, with an exact check.

    user       Past of "go" with "she"?
    chosen     she went
    rejected   she goed

| tense | right | wrong |
|---|---|---|
| present | she goes | she go, she went, she has gone |
| past | she went | she goed, she goes, she has gone |
| perfect | she has gone | she has went, she has goed, she has go, she went |

Splits are by verb: no verb of a held-out question is learned from. What spoils preferences is put
in by hand, in shares that are asked for: labels turned round (`flipped`), good answers left out
(`ratings`), and length (`framed`): the answer in a sentence, `The right form here is: she went`,
which is as right as the form alone. Equal shares of frames in both answers say nothing about
length; more in the chosen ones teach it.

Rules of spelling are those of `_verbs.py`; `verb_forms.json` holds 91 irregular verbs and 61
regular ones.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from worthit.errors import InputError, unknown_name
from worthit.lab.tasks._verbs import english

FILE = Path(__file__).with_name("verb_forms.json")
TENSES = ("present", "past", "perfect")
PRONOUNS = ("I", "you", "he", "she", "we", "they")
THIRD = ("he", "she")
SPLITS = ("train", "test")
# Of the verbs, a third is held out.
HELD_OUT = 3
INSTRUCTION = "Give the verb form."
FRAME = "The right form here is: "


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        verb: its infinitive.
        right: the one right answer.
        wrong: other forms of the same verb with the same pronoun.
    """

    verb: str
    tense: str
    pronoun: str
    right: str
    wrong: tuple[str, ...]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The question as a chat template takes it."""
        asked = f'{self.tense.capitalize()} of "{self.verb}" with "{self.pronoun}"?'
        return [
            {"role": "system", "content": INSTRUCTION},
            {"role": "user", "content": asked},
        ]


@dataclass(frozen=True)
class Preference:
    """A question and two answers, the first of which is said to be better."""

    question: Question
    chosen: str
    rejected: str

    @property
    def row(self) -> dict[str, Any]:
        """A row of a file that `worthit align` reads."""
        return {
            "prompt": self.question.messages,
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
        }


def check(question: Question, said: str) -> bool:
    """Whether an answer is right: the form, or the form in its frame; a full stop may follow."""
    return said.strip().removeprefix(FRAME).removesuffix(".") == question.right


def framed(answer: str) -> str:
    """An answer in a sentence: longer, and as right as it was."""
    return FRAME + answer


@cache
def questions(split: str) -> tuple[Question, ...]:
    """Every question of a split, in an order that says nothing.

    Raises:
        UnknownName: no such split.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    data = json.loads(FILE.read_text(encoding="utf-8"))
    found: list[Question] = []
    for kind in ("irregular", "regular"):
        for i, entry in enumerate(data[kind]):
            if (i % HELD_OUT == 0) == (split == "test"):
                found += _questions(*([entry] if isinstance(entry, str) else entry))
    random.Random(split).shuffle(found)
    return tuple(found)


def preferences(
    split: str,
    n: int,
    *,
    seed: int,
    flipped: float = 0.0,
    frames: tuple[float, float] = (0.0, 0.0),
) -> list[Preference]:
    """`n` questions, each with its right answer over a wrong one.

    Args:
        flipped: the share of pairs whose labels are turned round.
        frames: the share of chosen and of rejected answers that stand in a frame.

    Raises:
        InputError: more than there are.
    """
    known = questions(split)
    if n > len(known):
        raise InputError(f"n: the split {split!r} has {len(known)} questions, got {n}")
    # What is drawn for one purpose does not move with another's share.
    drawn = {use: random.Random(f"{use} {split} {seed}") for use in ("which", "flip", "frame")}
    found = []
    for question in drawn["which"].sample(known, n):
        answers = [question.right, drawn["which"].choice(question.wrong)]
        if drawn["flip"].random() < flipped:
            answers.reverse()
        chosen, rejected = (
            framed(answer) if drawn["frame"].random() < share else answer
            for answer, share in zip(answers, frames, strict=True)
        )
        found.append(Preference(question, chosen, rejected))
    return found


def ratings(
    pairs: Sequence[Preference], *, good: float = 1.0, seed: int = 0
) -> list[tuple[Question, str, bool]]:
    """Pairs taken apart: answers with whether they were preferred, `good` of the preferred ones."""
    drawn = random.Random(seed)
    found = []
    for pair in pairs:
        if drawn.random() < good:
            found.append((pair.question, pair.chosen, True))
        found.append((pair.question, pair.rejected, False))
    drawn.shuffle(found)
    return found


def _questions(verb: str, past: str | None = None, participle: str | None = None) -> list[Question]:
    """Every tense and pronoun of a verb; `past` and `participle` of an irregular one."""
    rule = english(verb)
    by_rule = rule["past", "1"]
    past, participle = past or by_rule, participle or by_rule
    third = "has" if verb == "have" else rule["present", "3"]
    found = []
    for pronoun in PRONOUNS:
        is_third = pronoun in THIRD
        present, other = (third, verb) if is_third else (verb, third)
        has = "has" if is_third else "have"
        right = {"present": present, "past": past, "perfect": f"{has} {participle}"}
        wrong = {
            "present": (other, past, right["perfect"]),
            "past": (by_rule, present, right["perfect"]),
            "perfect": (f"{has} {past}", f"{has} {by_rule}", f"{has} {verb}", past),
        }
        for tense in TENSES:
            forms = dict.fromkeys(form for form in wrong[tense] if form != right[tense])
            found.append(
                Question(
                    verb=verb,
                    tense=tense,
                    pronoun=pronoun,
                    right=f"{pronoun} {right[tense]}",
                    wrong=tuple(f"{pronoun} {form}" for form in forms),
                )
            )
    return found
