"""Preference data: which answers are good, better, or at least there, and every way to read them.

Four shapes, told by the keys of a row:

    pair            chosen, rejected                 with or without prompt
    binary          prompt, completion, label        label is true or false
    demonstration   prompt, completion; or messages  an answer that is good, or only present
    prompt          prompt                           nothing is said about answers

A prompt or answer is text or a list of messages (`{"role", "content"}`), as in TRL and in most
published sets. Files are JSONL, JSON or Parquet, or a folder that `datasets` saved; rows of any
other origin go through `from_rows`. Every row is checked, and everything wrong is said at once,
each with its line. Nothing is changed, dropped or repaired on the way.

What a set is like (duplicates, contradictions, noise, biases) is in `preference_stats`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from worthit._record import record
from worthit.errors import SpecError
from worthit.spec.preference_facts import SHAPES, Shape

__all__ = [
    "SHAPES",
    "Example",
    "Message",
    "PreferenceError",
    "Preferences",
    "Shape",
    "Turns",
    "from_rows",
    "plain",
    "read_preferences",
]

# Of one kind of problem, so many are written out; of the rest, their number.
N_SHOWN = 20


class PreferenceError(SpecError):
    """Preference data that cannot be learnt from as it is; each problem names its line."""


@record
class Message:
    """One turn of a conversation."""

    role: str
    content: str


# A prompt or an answer: plain text, or turns of a conversation.
Turns = str | tuple[Message, ...]


@record
class Example:
    """One row, in whichever shape.

    Attributes:
        prompt: what was asked; "" or () where nothing was.
        chosen: the better answer of a pair, or the only one; None in the shape `prompt`.
        rejected: the worse answer of a pair; else None.
        label: whether the only answer is a good one, in the shape `binary`; else None.
        line: where the row stands: its line in JSONL and JSON, from 1; its number elsewhere.

    Prompt and answers are of one kind, text or messages.
    """

    prompt: Turns
    chosen: Turns | None = None
    rejected: Turns | None = None
    label: bool | None = None
    line: int = 0

    @property
    def is_chat(self) -> bool:
        """Whether prompt and answers are messages, for a chat template to lay out."""
        return not isinstance(self.prompt, str)

    @property
    def answers(self) -> tuple[Turns, ...]:
        """The answers there are, the better one first."""
        return tuple(a for a in (self.chosen, self.rejected) if a is not None)


@record
class Preferences:
    """A set of examples of one shape.

    `source` is the file it came from; `ignored` are columns that were not read.
    """

    shape: Shape
    examples: tuple[Example, ...] = field(repr=False)
    source: str = ""
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    @property
    def is_chat(self) -> bool:
        """Whether the examples are conversations."""
        return self.examples[0].is_chat


def plain(turns: Turns | None) -> str:
    """The text of a prompt or an answer, without roles.

    >>> plain((Message(role="user", content="Hi"), Message(role="assistant", content="Hello")))
    'Hi\\nHello'
    """
    if turns is None or isinstance(turns, str):
        return turns or ""
    return "\n".join(message.content for message in turns)


def read_preferences(path: str | os.PathLike[str]) -> Preferences:
    """Read a file of preferences.

    Args:
        path: `.jsonl`, `.json` or `.parquet`, or a folder that `datasets` saved.

    Raises:
        PreferenceError: everything that is wrong, at once, each with its line.
        MissingCapability: Parquet and folders take the extra `align`.
    """
    from worthit.spec._preference_files import rows_of

    source = Path(path)
    return _collected(rows_of(source), name=source.name, source=str(source))


def from_rows(rows: Iterable[Mapping[str, Any]], *, source: str = "") -> Preferences:
    """Check rows that are in memory, such as those of a `datasets.Dataset`.

    Raises:
        PreferenceError: everything that is wrong, at once, each with the row's number, from 1.
    """
    numbered = ((i, "row", row, "") for i, row in enumerate(rows, start=1))
    return _collected(numbered, name=source, source=source)


Row = tuple[int, str, Any, str]


def _collected(rows: Iterable[Row], *, name: str, source: str) -> Preferences:
    """Examples of one shape from rows: (number, what the number counts, data, problem)."""
    from worthit.spec._preference_rows import read_row, shape_of

    problems = _Kinds()
    examples: list[Example] = []
    first: tuple[Shape, str] | None = None
    first_kind: tuple[bool, str] | None = None
    ignored: dict[str, None] = {}
    for number, unit, data, broken in rows:
        where = f"{unit} {number}"
        if broken:
            problems.add(where, broken)
            continue
        shape, wrong = shape_of(data)
        if shape is None:
            problems.add(where, wrong)
            continue
        if first is None:
            first = (shape, where)
        if shape != first[0]:
            problems.add(
                where,
                f"is a {shape}, and {first[1]} is a {first[0]}; one file has one shape: split it",
            )
            continue
        example, found, unread = read_row(data, shape, number)
        for message in found:
            problems.add(where, message)
        if example is None:
            continue
        if first_kind is None:
            first_kind = (example.is_chat, where)
        if example.is_chat != first_kind[0]:
            kinds = ("text", "messages")
            problems.add(
                where,
                f"holds {kinds[example.is_chat]}, and {first_kind[1]} {kinds[first_kind[0]]}; "
                "one file has one of the two",
            )
            continue
        ignored.update(dict.fromkeys(unread))
        examples.append(example)
    if problems:
        raise PreferenceError(*problems.written(), context=name)
    if first is None:
        raise PreferenceError("holds no examples", context=name)
    return Preferences(
        shape=first[0], examples=tuple(examples), source=source, ignored=tuple(ignored)
    )


class _Kinds:
    """Problems in order, of each kind the first few in full and then how many there are."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}
        self._order: list[tuple[str, str, str]] = []

    def __bool__(self) -> bool:
        return bool(self._order)

    def add(self, where: str, message: str) -> None:
        # Numbers and quoted values tell apart problems of one kind.
        kind = _kind(message)
        places = self._found.setdefault(kind, [])
        places.append(where)
        if len(places) <= N_SHOWN:
            self._order.append((kind, where, message))

    def written(self) -> Sequence[str]:
        lines = [f"{where}: {message}" for _, where, message in self._order]
        for places in self._found.values():
            more = len(places) - N_SHOWN
            if more > 0:
                start = next(m for k, w, m in self._order if self._found[k] is places)
                lines.append(f"{places[N_SHOWN]} to {places[-1]}: {more} more like: {start}")
        return lines


def _kind(message: str) -> str:
    return "".join(c for c in message.partition(", got ")[0] if not c.isdigit())
