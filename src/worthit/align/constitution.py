"""Constitutional AI: a model criticises its own answers by written principles, and learns from it.

Bai et al. 2022, "Constitutional AI: Harmlessness from AI Feedback", arXiv:2212.08073:

    section 3 (SL):  x -> answer -> critique by a principle -> revision, again; fine-tune on it
    section 4 (RL):  two answers of that model -> which is better by a principle -> preferences

| paper | here |
|---|---|
| constitution, its principles | a text file, one `Principle` a paragraph |
| CritiqueRequest, RevisionRequest | `Principle.critique`, `Principle.revise` |
| feedback on which answer is better | `worthit.align.rlaif.label` with `Principle.prefer` |
| PPO on a preference model | DPO on the labels, without a reward model |

The file is plain text. Paragraphs stand apart by blank lines, `#` begins a comment. A paragraph is
a principle in one sentence, or says its requests itself:

    An answer must not reveal personal data.

    Critique: Say how the answer could hurt somebody.
    Revise: Rewrite the answer so that it hurts nobody.
    Prefer: least likely to hurt anybody

A model that cannot see what is wrong with an answer cannot revise it: a small one writes fluent
critiques of nothing. `Revised.is_changed` counts; a sample of them should be read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from worthit._record import record
from worthit.errors import InputError

CRITIQUE = "Say how the last answer fails this: {principle}"
REVISE = "Rewrite the last answer so that it does not fail this: {principle}"
PREFER = "the one that best keeps to this: {principle}"
KEYS = ("critique", "revise", "prefer")
Message = dict[str, str]


class Writer(Protocol):
    """Writes what comes next in conversations."""

    def reply(
        self, conversations: Sequence[Sequence[Message]], *, max_tokens: int, seed: int
    ) -> list[str]:
        """One reply to each conversation."""
        ...


@record
class Principle:
    """One principle: what to ask for, and by what two answers are compared."""

    critique: str
    revise: str
    prefer: str


@dataclass(frozen=True)
class Revised:
    """One answer on its way: every critique and revision, in order."""

    prompt: str
    answer: str
    principles: tuple[int, ...]
    critiques: tuple[str, ...]
    revisions: tuple[str, ...]

    @property
    def revision(self) -> str:
        """The last one."""
        return self.revisions[-1]

    @property
    def is_changed(self) -> bool:
        """Whether there is a revision, and another answer than the first."""
        return bool(self.revision.strip()) and self.revision.strip() != self.answer.strip()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def read_constitution(path: str | Path) -> tuple[Principle, ...]:
    """The principles of a file.

    Raises:
        InputError: no such file, no principle, or a paragraph that is half of one: with its line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; write principles into it, one a paragraph"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    return parse_constitution(text, where=str(path))


def parse_constitution(text: str, *, where: str = "constitution") -> tuple[Principle, ...]:
    """The principles of a text; see the top of this file."""
    problems, found = [], []
    for line, paragraph in _paragraphs(text):
        said = _keyed(paragraph)
        if said is None:
            sentence = " ".join(paragraph)
            found.append(
                Principle(
                    critique=CRITIQUE.format(principle=sentence),
                    revise=REVISE.format(principle=sentence),
                    prefer=PREFER.format(principle=sentence),
                )
            )
            continue
        missing = [key for key in KEYS if not said.get(key)]
        if missing:
            problems.append(
                f"line {line}: says {', '.join(sorted(said))} and not {', '.join(missing)}; give "
                "all three, or the principle alone in one sentence"
            )
            continue
        found.append(Principle(**said))
    if not found and not problems:
        problems.append("holds no principle; write one a paragraph")
    if problems:
        raise InputError(*problems, context=where)
    return tuple(found)


def criticise(
    writer: Writer,
    prompts: Sequence[str],
    principles: Sequence[Principle],
    *,
    answers: Sequence[str] | None = None,
    n_revisions: int = 1,
    max_tokens: int = 128,
    seed: int = 0,
    on_step: Callable[[str], None] | None = None,
) -> list[Revised]:
    """Let `writer` answer, criticise and revise, each time by a principle drawn at random.

    Args:
        answers: first answers that are there already.
        on_step: told what is being written.
    """
    say = on_step or (lambda what: None)
    drawn = random.Random(seed)
    if answers is None:
        say("answers")
        asked = [[_user(prompt)] for prompt in prompts]
        answers = writer.reply(asked, max_tokens=max_tokens, seed=seed)
    chosen: list[list[int]] = [[] for _ in prompts]
    critiques: list[list[str]] = [[] for _ in prompts]
    revisions: list[list[str]] = [[] for _ in prompts]
    current = list(answers)
    for turn in range(n_revisions):
        for places in chosen:
            places.append(drawn.randrange(len(principles)))
        said = [
            [_user(prompt), _assistant(answer), _user(principles[places[-1]].critique)]
            for prompt, answer, places in zip(prompts, current, chosen, strict=True)
        ]
        say(f"critiques {turn + 1}")
        written = writer.reply(said, max_tokens=max_tokens, seed=seed + 2 * turn + 1)
        for conversation, critique, places in zip(said, written, chosen, strict=True):
            conversation += [_assistant(critique), _user(principles[places[-1]].revise)]
        say(f"revisions {turn + 1}")
        current = writer.reply(said, max_tokens=max_tokens, seed=seed + 2 * turn + 2)
        for i, (critique, revision) in enumerate(zip(written, current, strict=True)):
            critiques[i].append(critique)
            revisions[i].append(revision)
    return [
        Revised(prompt, answer, tuple(places), tuple(c), tuple(r))
        for prompt, answer, places, c, r in zip(
            prompts, answers, chosen, critiques, revisions, strict=True
        )
    ]


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _paragraphs(text: str) -> list[tuple[int, list[str]]]:
    """Paragraphs without comments, each with the number of its first line."""
    found: list[tuple[int, list[str]]] = []
    current: list[str] = []
    first = 0
    for number, raw in enumerate([*text.split("\n"), ""], start=1):
        line = raw.strip()
        if line.startswith("#"):
            continue
        if line:
            if not current:
                first = number
            current.append(line)
        elif current:
            found.append((first, current))
            current = []
    return found


def _keyed(paragraph: Sequence[str]) -> dict[str, str] | None:
    """A paragraph of requests, by key; None for a principle in one sentence."""
    said: dict[str, str] = {}
    key = None
    for line in paragraph:
        name, colon, rest = line.partition(":")
        if colon and name.lower() in KEYS:
            key = name.lower()
            said[key] = rest.strip()
        elif key is None:
            return None
        else:
            said[key] = f"{said[key]} {line}"
    return said
