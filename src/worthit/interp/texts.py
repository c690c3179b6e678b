"""Texts in: JSONL of pairs, labels, questions or facts, every problem reported; and their states.

One object a line. Which kind a file is, its keys say:

    {"positive": "...", "negative": "..."}             contrast pairs, for directions
    {"text": "...", "label": "..."}                    labelled texts, for probes; texts of one
                                                       "group" stay on one side of a split
    {"question": "...", "answer": "..."}               questions with their answer, for detectors;
                                                       "answer" may be a list of right ones
    {"clean": "...", "corrupt": "...", "right": "...", "wrong": "..."}        for patching
    {"prompt": "... {} ...", "subject": "...", "target": "...", ...}          for editing
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from worthit.errors import InputError
from worthit.interp.edit import Fact
from worthit.interp.hooks import activations

if TYPE_CHECKING:
    from worthit.decode.tokenizer import Tokenizer
    from worthit.nn.decoder import Decoder

# Keys that must be there, by kind, and what else may be.
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pairs": (("positive", "negative"), ()),
    "labels": (("text", "label"), ("group",)),
    "questions": (("question", "answer"), ()),
    "prompts": (("clean", "corrupt", "right", "wrong"), ()),
    "facts": (("prompt", "subject", "target"), ("truth", "paraphrases", "neighbours")),
}
Position = Literal["last", "mean"]
# More are counted and not listed.
MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Given:
    """Rows that need no file: a set that comes with the package, by its name."""

    name: str
    rows: tuple[Mapping[str, Any], ...]

    def __str__(self) -> str:
        return self.name


Texts = str | Path | Given


def read_rows(path: Texts, kind: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file of `kind`, or those that are given.

    Raises:
        InputError: no such file, or any line that is not as it should be: all of them, by number.
    """
    if isinstance(path, Given):
        return [dict(row) for row in path.rows]
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        lines = file.read_bytes().decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: must be UTF-8, got the byte at {error.start}") from None
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = list(_line_problems(line, kind))
        key = json.dumps(json.loads(line), sort_keys=True) if not found else ""
        if key and key in seen:
            found = [f"the same as line {seen[key]}; leave one out"]
        problems += [f"line {number}: {text}" for text in found]
        if not found:
            seen[key] = number
            rows.append(json.loads(line))
    if not rows and not problems:
        problems = ["is empty; write one JSON object a line"]
    if problems:
        more = len(problems) - MAX_PROBLEMS
        shown = problems[:MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise InputError(*shown, context=str(path))
    return rows


def _line_problems(line: str, kind: str) -> Iterable[str]:
    required, optional = KINDS[kind]
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        yield f"is no JSON: {error.msg} at column {error.colno}"
        return
    if not isinstance(row, dict):
        yield f"must be an object with {', '.join(required)}, got {type(row).__name__}"
        return
    missing = [key for key in required if key not in row]
    if missing:
        others = [k for k, (keys, _) in KINDS.items() if set(keys) <= set(row)]
        hint = f"; these keys are of {others[0]}" if others else ""
        yield f"{', '.join(missing)} missing: this needs {', '.join(required)}{hint}"
    unknown = [key for key in row if key not in (*required, *optional)]
    if unknown and not missing:
        yield f"unknown keys {', '.join(unknown)}; known are {', '.join((*required, *optional))}"
    for key in required:
        if key in row:
            yield from _value_problems(key, row[key])
    if missing or unknown:
        return
    if kind == "pairs" and row["positive"] == row["negative"]:
        yield "positive and negative are the same text"
    if kind == "prompts" and row["right"] == row["wrong"]:
        yield "right and wrong are the same answer"
    if kind == "facts":
        try:
            fact_of(row)
        except InputError as error:
            yield from error.problems


def _value_problems(key: str, value: Any) -> Iterable[str]:
    if key == "label" and isinstance(value, str | int | bool):
        return
    if key == "answer" and isinstance(value, list):
        if not value or not all(isinstance(v, str) and v.strip() for v in value):
            yield "answer: must be a text, or a list of texts, none empty"
        return
    if not isinstance(value, str):
        yield f"{key}: must be a text, got {type(value).__name__}"
    elif not value.strip():
        yield f"{key}: must not be empty"


def fact_of(row: Mapping[str, Any]) -> Fact:
    """A row of `facts` as a `Fact`; targets get the space that stands before them.

    Raises:
        InputError: something in it is not as it should be.
    """
    problems = []
    paraphrases, neighbours = row.get("paraphrases", []), row.get("neighbours", [])
    if not isinstance(paraphrases, list) or not all(isinstance(p, str) for p in paraphrases):
        problems.append("paraphrases: must be a list of prompts with {}")
    is_pairs = isinstance(neighbours, list) and all(
        isinstance(n, list | tuple) and len(n) == 2 and all(isinstance(t, str) for t in n)
        for n in neighbours
    )
    if not is_pairs:
        problems.append('neighbours: must be a list of ["prompt", "answer"]')
    if problems:
        raise InputError(*problems)

    def spaced(text: str) -> str:
        return text if text.startswith(" ") else f" {text}"

    return Fact(
        prompt=row["prompt"],
        subject=row["subject"],
        target=spaced(row["target"]),
        truth=None if row.get("truth") is None else spaced(row["truth"]),
        paraphrases=tuple(paraphrases),
        neighbours=tuple((prompt, spaced(answer)) for prompt, answer in neighbours),
    )


def kind_of(path: Texts, kinds: Sequence[str]) -> str:
    """Which of `kinds` the first line of a file is; the first of them where that is unclear."""
    if isinstance(path, Given):
        return next(kind for kind in kinds if set(KINDS[kind][0]) <= set(path.rows[0]))
    file = Path(path)
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.strip():
                for kind in kinds:
                    if not any(_line_problems(line, kind)):
                        return kind
                break
    return kinds[0]


# --- states --------------------------------------------------------------------------------------


@torch.inference_mode()
def states(
    model: Decoder,
    rows: Sequence[Sequence[int]],
    points: Sequence[str],
    *,
    position: Position = "last",
    batch: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """What the points hold for each text, `(len(rows), d)` in fp32.

    Args:
        rows: ids of each text. Texts of one length go together, so that nothing is padded.
        position: `last` token, or `mean` of all but the first, which many models use as a sink.

    Raises:
        InputError: an empty text, or one of a single token where a mean is wanted.
    """
    least = 1 if position == "last" else 2
    short = [str(i + 1) for i, row in enumerate(rows) if len(row) < least]
    if short:
        raise InputError(f"texts {', '.join(short[:5])}: need {least} tokens or more")
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(i)
    out: dict[str, Tensor] = {}
    done = 0
    for places in by_length.values():
        for start in range(0, len(places), batch):
            some = places[start : start + batch]
            ids = torch.tensor([list(rows[i]) for i in some], device=model.device)
            seen = activations(model, ids, points)
            for point in points:
                value = seen[point].float()
                picked = value[:, -1] if position == "last" else value[:, 1:].mean(1)
                if point not in out:
                    out[point] = torch.full((len(rows), picked.shape[-1]), torch.nan)
                out[point][some] = picked.cpu()
            done += len(some)
            if on_progress is not None:
                on_progress(done, len(rows))
    return {point: value.clone() for point, value in out.items()}


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text as it stands."""
    return [tokenizer.encode(text) for text in texts]


def residual_points(model: Decoder) -> list[str]:
    """Layer 0, the embedding, and the stream after each layer: where probes are put."""
    return ["embed", *(f"layers.{i}.resid_post" for i in range(len(model.layers)))]
