"""Prompts for a real model: four kinds of work, and long documents with a fact in them.

They were written for this project and stand under its licence, Apache-2.0 (`prompts.json`). They
are for measuring inference, not for judging a model: few and fixed, so that two runs see the same.

    edit        most of the answer stands in the prompt: lookup and speculation gain most
    summarise   some of it does
    chat        hardly any does
    maths       short, with an answer that can be checked

Long documents are source files of the Python standard library on this machine, with one line
planted at a known depth and a question about it; they differ between Python versions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from worthit.errors import unknown_name
from worthit.lab.tasks._generated import at_least
from worthit.lab.tasks._stdlib import split_files

FILE = Path(__file__).with_name("prompts.json")
KINDS = ("edit", "summarise", "chat", "maths")
LONG = "long"
# Enough to fill the longest document many times over.
SOURCE_BYTES = 8_000_000


@dataclass(frozen=True)
class Prompt:
    """One request.

    Attributes:
        id: unique among the prompts.
        kind: one of `KINDS`, or `long`.
        text: what the user says.
        answer: what a right reply must contain; empty where there is no such thing.
        depth: of a long document, where the planted line stands, from 0 to 1.
    """

    id: str
    kind: str
    text: str
    answer: str = ""
    depth: float = 0.0

    @property
    def messages(self) -> list[dict[str, str]]:
        """As a conversation of one turn: what a chat template takes."""
        return [{"role": "user", "content": self.text}]


@cache
def prompts(kind: str = "") -> tuple[Prompt, ...]:
    """The fixed prompts, of one kind or of all, in the order of the file.

    Raises:
        UnknownName: no such kind.
    """
    if kind and kind not in KINDS:
        raise unknown_name("kind of prompt", kind, KINDS)
    entries = json.loads(FILE.read_text(encoding="utf-8"))["prompts"]
    return tuple(Prompt(**entry) for entry in entries if kind in ("", entry["kind"]))


def long_documents(
    n_chars: int = 8000, *, depths: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9), seed: int = 0
) -> tuple[Prompt, ...]:
    """One long prompt a depth: source code of about `n_chars` characters, a fact, a question.

    Raises:
        InputError: `n_chars` is too few to hide anything in.
        MissingCapability: this Python has no source of its library.
    """
    at_least("n_chars", n_chars, 200)
    parts = split_files(seed, SOURCE_BYTES)
    text = "".join(text for part in parts.values() for _, text in part)
    rng = random.Random(seed)
    made = []
    for place, depth in enumerate(depths):
        start = rng.randrange(max(1, len(text) - n_chars))
        document = text[start : start + n_chars]
        code = next(code for code in _codes(rng) if code not in document)
        # At the start of a line, as near to the depth as there is one.
        cut = document.rfind("\n", 0, int(depth * len(document))) + 1
        planted = f"# The code of the north gate is {code}.\n"
        request = (
            "Read this source code.\n\n"
            f"```python\n{document[:cut]}{planted}{document[cut:]}\n```\n\n"
            "A comment in it says the code of the north gate. What is that code?"
        )
        made.append(Prompt(f"{LONG}-{n_chars}-{place}", LONG, request, code, depth))
    return tuple(made)


def _codes(rng: random.Random) -> Iterator[str]:
    while True:
        yield str(rng.randrange(1000, 10_000))
