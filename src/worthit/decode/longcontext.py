"""How much of its context a model uses: a needle to find, and the loss at every distance.

Two questions, for a model as it is and with its context stretched (`worthit.spec.extension`):

- **Needle** (Mohtashami & Jaggi 2023, "Landmark Attention", arXiv:2305.16300, section 4.2; with
  several keys Hsieh et al. 2024, "RULER", arXiv:2404.06654, section 3.1): a sentence with a number
  stands at some depth of a long text, and the number is asked for at its end. Found is what greedy
  decoding would say digit for digit.
- **Loss by position**: the mean loss of tokens that have so many before them, in files of the
  standard library that are long enough, one file a row. It falls as long as context helps, and
  rises where positions are beyond what training knew.

The effective length is the longest for which the answer is still right at it and at every shorter
one: needles found at least `FOUND` of the time, which is RULER's own threshold of 85.6 %; losses no
worse than `MARGIN` above the best before.
"""

from __future__ import annotations

import math
import random
import statistics
import sysconfig
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from worthit.decode.corpus import documents, sequences
from worthit.decode.perplexity import CHUNK, losses
from worthit.decode.tokenizer import Tokenizer
from worthit.errors import InputError
from worthit.nn.position.rope import changes_with_length

if TYPE_CHECKING:
    from worthit.nn.decoder import Decoder

FOUND = 0.856
# In nats; a bucket must also be worse by two standard errors of the difference within files.
MARGIN = 0.1
FIRST_BUCKET = 256
# Tokens of the passes from which the time of longer ones is foretold.
PROBES = (256, 1024)
N_DIGITS = 5
NEEDLE = "\nThe pass key of {name} is {key}. Remember it: {key} is the pass key of {name}.\n"
QUESTION = "\nWhat is the pass key of {name}?"
ANSWER = "The pass key of {name} is"
NAMES = ("Oslo", "Lima", "Cairo", "Hanoi", "Quito", "Accra", "Minsk", "Dakar")
# Stands for the text while a chat template is rendered around it.
_HERE = "\x02HERE\x03"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is measured.

    Attributes:
        lengths: of the prompts, in tokens.
        depths: where the needle stands, 0 the beginning and 1 the end.
        repeats: needles at each length and depth, with other numbers and text.
        n_keys: numbers in the text, of which one is asked for.
        n_rows: files for the loss; 0 leaves it out.
        row_length: tokens of each; None for as many as the longest prompt has.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...] = (0.1, 0.5, 0.9)
    repeats: int = 1
    n_keys: int = 1
    n_rows: int = 3
    seed: int = 0
    row_length: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if not self.lengths or any(n < 2 * FIRST_BUCKET for n in self.lengths):
            problems.append(
                f"lengths: each must be at least {2 * FIRST_BUCKET}, got {self.lengths}"
            )
        if any(not 0 <= d <= 1 for d in self.depths):
            problems.append(f"depths: each must be from 0 to 1, got {self.depths}")
        if self.repeats < 0:
            problems.append(f"repeats: must be 0 or more, got {self.repeats}")
        if not 1 <= self.n_keys <= len(NAMES):
            problems.append(f"keys: must be from 1 to {len(NAMES)}, got {self.n_keys}")
        if self.n_rows < 0:
            problems.append(f"rows: must be 0 or more, got {self.n_rows}")
        if self.row_length is not None and self.row_length < 2 * FIRST_BUCKET:
            problems.append(
                f"row length: must be at least {2 * FIRST_BUCKET}, got {self.row_length}"
            )
        if problems:
            raise InputError(*problems)

    @property
    def n_cells(self) -> int:
        """Needles."""
        return len(self.lengths) * len(self.depths) * self.repeats

    @property
    def longest_row(self) -> int:
        """Tokens of a row whose loss is measured."""
        return max(self.lengths) if self.row_length is None else self.row_length

    @property
    def passes(self) -> list[int]:
        """Tokens of each prompt and row that goes through a model, in the order of `measure`."""
        return [length for length, *_ in cells(self)] + [self.longest_row] * self.n_rows

    @property
    def n_tokens(self) -> int:
        """Tokens that go through a model."""
        return sum(self.passes)


@dataclass(frozen=True, kw_only=True)
class Needle:
    """A prompt with one needle asked for, and the ids that answer it."""

    prompt: list[int]
    answer: list[int]


# --- needles --------------------------------------------------------------------------------------


class Haystack:
    """Text to hide things in: the standard library's held-out half, from a random place on."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids = [i for text in documents("held-out") for i in self._encode(text + "\n")]
        self.head, self.tail = _around(tokenizer)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, has_special=False)

    def needle(self, length: int, depth: float, *, n_keys: int, seed: int) -> Needle:
        """A prompt of at most `length` tokens, answer included.

        Raises:
            InputError: a length that the needles alone do not fit in.
        """
        rng = random.Random(f"{length} {depth} {n_keys} {seed}")
        names = rng.sample(NAMES, n_keys)
        keys = [f"{rng.randrange(10 ** (N_DIGITS - 1), 10**N_DIGITS)}" for _ in names]
        wanted, key = names[0], keys[0]
        head = self.tokenizer.encode(self.head)
        tail = self._encode(QUESTION.format(name=wanted) + self.tail + ANSWER.format(name=wanted))
        answer = self._encode(f" {key}")
        needles = [
            self._encode(NEEDLE.format(name=n, key=k)) for n, k in zip(names, keys, strict=True)
        ]
        room = length - len(head) - len(tail) - len(answer) - sum(map(len, needles))
        if room < 0:
            raise InputError(f"lengths: {length} tokens do not hold {n_keys} needles; take more")
        start = rng.randrange(len(self.ids))
        hay = [self.ids[(start + i) % len(self.ids)] for i in range(room)]
        # The one that is asked for stands at `depth`, the others anywhere.
        places = [round(depth * room), *(rng.randrange(room + 1) for _ in names[1:])]
        body: list[int] = []
        last = 0
        for place, needle in sorted(zip(places, needles, strict=True)):
            body += hay[last:place] + needle
            last = place
        return Needle(prompt=head + body + hay[last:] + tail, answer=answer)


def _around(tokenizer: Tokenizer) -> tuple[str, str]:
    """What a chat template puts before and after a user's text, up to the answer."""
    if tokenizer.chat_template is None:
        return "", "\n"
    text = tokenizer.render_chat([{"role": "user", "content": _HERE}])
    head, _, tail = text.partition(_HERE)
    return head, tail


def retrieved(model: Decoder, needle: Needle, *, chunk: int = CHUNK) -> tuple[bool, float]:
    """Whether greedy decoding says the answer, and the answer's log-probability, in nats."""
    ids = torch.tensor([needle.prompt + needle.answer[:-1]], device=model.device)
    n, n_answer = ids.shape[1], len(needle.answer)
    before = n - n_answer
    if changes_with_length(model.spec.position):
        chunk = before
    with torch.inference_mode():
        cache = model.new_cache()
        for start in range(0, before, chunk):
            model(ids[:, start : min(start + chunk, before)], cache=cache, last_only=True)
        if model.outgrows(cache, n_answer):
            logits = model(ids)[0, -n_answer:]
        else:
            logits = model(ids[:, before:], cache=cache)[0]
    wanted = torch.tensor(needle.answer, device=logits.device)
    logp = logits.float().log_softmax(-1).gather(-1, wanted[:, None]).sum()
    return bool((logits.argmax(-1) == wanted).all()), float(logp)


# --- losses ---------------------------------------------------------------------------------------


def long_rows(tokenizer: Tokenizer, n: int, length: int) -> Tensor:
    """The first `length` tokens of `n` files that have so many, `(rows, length)`.

    Fewer rows where there are fewer such files; running text where there is none.
    """
    paths = sorted(
        Path(sysconfig.get_paths()["stdlib"]).glob("*.py"),
        key=lambda path: zlib.crc32(path.name.encode()),
    )
    rows: list[list[int]] = []
    for path in paths:
        if len(rows) == n:
            break
        # At most a few characters a token: shorter files need not be encoded.
        if path.stat().st_size < 2 * length:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        ids = tokenizer.encode(text[: 8 * length], has_special=False)
        if len(ids) >= length:
            rows.append(ids[:length])
    return torch.tensor(rows) if rows else sequences(tokenizer, n, length, part="held-out")


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Losses of tokens with `start` to `end` tokens before them; `stderr` over rows.

    `rows` are the mean losses of each row: files differ more than positions do, so that two buckets
    are compared row by row.
    """

    start: int
    end: int
    loss: float
    stderr: float | None
    rows: tuple[float, ...] = ()

    def rise(self, other: Bucket) -> tuple[float, float]:
        """How much higher its loss is than that of `other`, and the standard error of that."""
        if len(self.rows) < 2 or len(self.rows) != len(other.rows):
            return self.loss - other.loss, self.stderr or 0.0
        each = [a - b for a, b in zip(self.rows, other.rows, strict=True)]
        return statistics.mean(each), statistics.stdev(each) / math.sqrt(len(each))

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return math.exp(self.loss)


def buckets(found: Tensor) -> list[Bucket]:
    """Mean losses by position, of `losses` `(rows, n)`, in buckets that double."""
    edges = [0, min(FIRST_BUCKET, found.shape[1])]
    while edges[-1] < found.shape[1]:
        edges.append(min(2 * edges[-1], found.shape[1]))
    # A last piece much shorter than its bucket says little: it joins the one before.
    if len(edges) > 2 and edges[-1] - edges[-2] < edges[-2] // 4:
        del edges[-2]
    return [
        _bucket(start, end, found[:, start:end].mean(1).tolist()) for start, end in pairwise(edges)
    ]


def _bucket(start: int, end: int, rows: Sequence[float]) -> Bucket:
    n = len(rows)
    return Bucket(
        start=start,
        end=end,
        loss=statistics.mean(rows),
        stderr=statistics.stdev(rows) / math.sqrt(n) if n > 1 else None,
        rows=tuple(rows),
    )


# --- effective lengths ----------------------------------------------------------------------------


def effective_by_needle(found: Mapping[int, Sequence[bool]]) -> int:
    """The longest length at and below which enough needles were found; 0 where none is.

    Args:
        found: for each length whether each needle was.
    """
    best = 0
    for length in sorted(found):
        tries = found[length]
        if not tries or sum(tries) < FOUND * len(tries):
            break
        best = length
    return best


def effective_by_loss(found: Sequence[Bucket]) -> int:
    """The end of the last bucket before losses rise above the best before them."""
    best, end = None, 0
    for bucket in found:
        if best is not None:
            rise, stderr = bucket.rise(best)
            if rise > max(MARGIN, 2 * stderr):
                break
        if best is None or bucket.loss < best.loss:
            best = bucket
        end = bucket.end
    return end


# --- all of it ------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Measured:
    """What one model gave: cells as they came, and buckets."""

    cells: list[dict[str, Any]] = field(default_factory=list)
    positions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def n_rows(self) -> int:
        """Rows whose losses are known."""
        return len(self.positions[0]["rows"]) if self.positions else 0

    def add_row(self, found: Sequence[Bucket]) -> None:
        """Put the buckets of one more row to the others."""
        before = [bucket["rows"] for bucket in self.positions] or [()] * len(found)
        self.positions = [
            vars(_bucket(new.start, new.end, [*rows, *new.rows])).copy()
            for new, rows in zip(found, before, strict=True)
        ]

    def record(self, context_len: int) -> dict[str, Any]:
        """As JSON: with accuracy at each length and depth, and both effective lengths."""
        by_length: dict[int, list[bool]] = {}
        for cell in self.cells:
            by_length.setdefault(cell["length"], []).append(cell["is_found"])
        found = [Bucket(**bucket) for bucket in self.positions]
        return {
            "context_len": context_len,
            "needle": self.cells,
            "accuracy": [
                {"length": n, "accuracy": sum(tries) / len(tries), "n": len(tries)}
                for n, tries in sorted(by_length.items())
            ],
            "positions": [b | {"perplexity": math.exp(b["loss"])} for b in self.positions],
            "effective": {
                "needle": effective_by_needle(by_length) if by_length else None,
                "loss": effective_by_loss(found) if found else None,
            },
        }


def measure(
    model: Decoder,
    tokenizer: Tokenizer,
    setup: Setup,
    *,
    known: Measured | None = None,
    on_cell: Callable[[Measured], None] | None = None,
) -> Measured:
    """Needles and losses of `model`.

    Args:
        known: what was measured before; only what is missing is done.
        on_cell: called after each needle and each row.
    """
    done = known or Measured()
    there = {(c["length"], c["depth"], c["repeat"]) for c in done.cells}
    haystack: Haystack | None = None
    for length, depth, repeat in cells(setup):
        if (length, depth, repeat) in there:
            continue
        haystack = haystack or Haystack(tokenizer)
        needle = haystack.needle(length, depth, n_keys=setup.n_keys, seed=setup.seed + repeat)
        is_found, logp = retrieved(model, needle)
        done.cells.append(
            {
                "length": length,
                "depth": depth,
                "repeat": repeat,
                "is_found": is_found,
                "log_probability": logp,
            }
        )
        if on_cell is not None:
            on_cell(done)
    if done.n_rows < setup.n_rows:
        for row in long_rows(tokenizer, setup.n_rows, setup.longest_row)[done.n_rows :]:
            done.add_row(buckets(losses(model, row[None])))
            if on_cell is not None:
                on_cell(done)
    return done


@dataclass(frozen=True)
class Pace:
    """Seconds of a pass over n tokens, `a n + b n^2`: what products take, and attention."""

    a: float
    b: float

    def of(self, n: int) -> float:
        """Seconds of `n` tokens."""
        return self.a * n + self.b * n * n


def pace(model: Decoder, longest: int, *, clock: Callable[[], float] = time.perf_counter) -> Pace:
    """What passes of `model` take here, from a short and a longer one, timed now.

    Args:
        longest: tokens of the longest pass that is to be foretold; a probe is no longer.
    """
    sizes = tuple(min(n, longest) for n in PROBES)
    spent = []
    with torch.inference_mode():
        for n in (sizes[0], *sizes):  # the first to warm up
            ids = torch.arange(n, device=model.device)[None] % model.spec.vocab_size
            cache, started = model.new_cache(), clock()
            chunk = n if changes_with_length(model.spec.position) else CHUNK
            for start in range(0, n, chunk):
                model(ids[:, start : start + chunk], cache=cache)
            spent.append(clock() - started)
    short, long = sizes[0], sizes[-1]
    each, later = spent[1] / short, spent[-1] / long
    b = max(0.0, (later - each) / (long - short)) if long > short else 0.0
    return Pace(max(each - b * short, 0.0), b)


def cells(setup: Setup) -> Iterator[tuple[int, float, int]]:
    """Every length, depth and repeat, the shortest first."""
    for length in sorted(setup.lengths):
        for depth in setup.depths:
            for repeat in range(setup.repeats):
                yield length, depth, repeat
