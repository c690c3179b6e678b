"""Sums of digits worked out step by step, modulo ten: a chain of thought that can be checked.

    7+8+9=     7+8:5;5+9:4;   #4
    question   steps          answer

One character is a token. What is checked of a text is every partial sum and its end, `544` here:
the last digit alone is guessed one time in ten, and eight guesses are right more often than not.
Every step, and so every beginning of a text, is exactly right or wrong: what a verifier of the
process needs, and what real chains of thought have not. A row may hold tries before the last one,
each with `~` behind it; half of them go wrong in one step. Tries are read and not learned, the last
one is: a model is taught to do better than what stands before it, and never to go wrong itself.

Nye et al. 2021, "Show Your Work: Scratchpads for Intermediate Computation with Language Models",
arXiv:2112.00114, section 3, for the working; the tries are ours.

What it tells apart: strategies that spend more tokens on an answer. The chance of a right answer
falls with every step, and `n_terms` says how many there are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worthit.lab.tasks._generated import Drawn, Generated, at_least, ignored

_SYMBOLS = (".", *"0123456789+=:;#~", "_")
_IDS = {symbol: i for i, symbol in enumerate(_SYMBOLS)}
END, STEP, ANSWER, AGAIN, PAD = (_IDS[s] for s in ".;#~_")
VOCAB_SIZE = len(_SYMBOLS)
BASE = 10
# A step, such as `7+8:5;`.
STEP_TOKENS = 6


@dataclass(frozen=True)
class Sum:
    """A question: digits to be added."""

    terms: tuple[int, ...]

    @property
    def prompt(self) -> str:
        """The question as it is asked."""
        return "+".join(map(str, self.terms)) + "="

    @property
    def steps(self) -> tuple[str, ...]:
        """The right steps, without what ends each."""
        return self.steps_from(0, self.terms[0])

    def steps_from(self, first: int, total: int) -> tuple[str, ...]:
        """The right steps from one on, were the sum before it `total`."""
        found = []
        for term in self.terms[1 + first :]:
            new = (total + term) % BASE
            found.append(f"{total}+{term}:{new}")
            total = new
        return tuple(found)

    @property
    def answer(self) -> str:
        """The right answer: every partial sum, and the last of them again."""
        totals = "".join(step[-1] for step in self.steps)
        return totals + totals[-1]


def build(*, n_terms: int = 4, n_tries: int = 0, seed: int = 0, n_held_out: int = 512) -> Generated:
    """Worked sums.

    Args:
        n_terms: digits of a sum; one step less.
        n_tries: at most so many tries stand before the last one, as many as any other number.
        seed: draws the held-out rows.
        n_held_out: rows of each held-out split.
    """
    at_least("n_terms", n_terms, 2)
    at_least("n_tries", n_tries, 0)
    seq_len = row_length(n_terms, n_tries)

    def draw(generator: torch.Generator, rows: int) -> Drawn:
        rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
        inputs, targets = torch.full((rows, seq_len), PAD), ignored(rows, seq_len)
        keys = torch.zeros((rows, n_terms), dtype=torch.long)
        for row in range(rows):
            asked = draw_sum(rng, n_terms)
            tries = "".join(_try(asked, rng) for _ in range(rng.randint(0, n_tries)))
            before = encode(asked.prompt + tries)
            tokens = torch.tensor([*before, *encode(worked(asked)), END])
            inputs[row, : len(tokens) - 1] = tokens[:-1]
            targets[row, len(before) - 1 : len(tokens) - 1] = tokens[len(before) :]
            keys[row] = torch.tensor(asked.terms)
        return Drawn(inputs, targets, keys)

    return Generated("worked-sums", VOCAB_SIZE, seq_len, draw, seed=seed, n_held_out=n_held_out)


def row_length(n_terms: int, n_tries: int) -> int:
    """Tokens of the longest row: the question, every try, steps, answer; the end is never read."""
    working = STEP_TOKENS * (n_terms - 1)
    return 2 * n_terms + (n_tries + 1) * (working + 1) + 1


def answer_length(n_terms: int) -> int:
    """Tokens of an answer with its working and its end."""
    return STEP_TOKENS * (n_terms - 1) + 3


def draw_sum(rng: random.Random, n_terms: int) -> Sum:
    """A random question."""
    return Sum(tuple(rng.randrange(BASE) for _ in range(n_terms)))


def questions(n: int, *, n_terms: int, seed: int) -> list[Sum]:
    """`n` different questions of the test split.

    They are read off held-out rows, which training never draws.
    """
    data = build(n_terms=n_terms, seed=seed, n_held_out=2 * n)
    found: dict[str, Sum] = {}
    for batch in data.held_out("test"):
        for row in batch.input_ids.tolist():
            text = decode(row).partition("=")[0]
            found[text] = read_sum(text)
    return list(found.values())[:n]


def read_sum(prompt: str) -> Sum:
    """The question that a prompt asks.

    >>> read_sum("7+8+9=").answer
    '544'
    """
    return Sum(tuple(int(digit) for digit in prompt.removesuffix("=").split("+")))


def worked(asked: Sum) -> str:
    """The right working and answer.

    >>> worked(read_sum("7+8+9="))
    '7+8:5;5+9:4;#4'
    """
    return "".join(f"{step};" for step in asked.steps) + f"#{asked.answer[-1]}"


def check(asked: Sum, answer: str) -> bool:
    """Whether `answer` is exactly right."""
    return answer == asked.answer


def read_answer(text: str) -> str | None:
    """The partial sums of a text's last try, and its end; None where it does not come to one.

    >>> read_answer("7+8:5;5+9:4;#4"), read_answer("7+8:5;")
    ('544', None)
    """
    working, _, end = text.rpartition("~")[2].partition("#")
    totals = "".join(step[-1:] for step in working.split(";")[:-1])
    return totals + end if end.isdigit() else None


def n_right_steps(asked: Sum, text: str) -> tuple[int, bool]:
    """Steps of the last try that are right from its beginning, and whether that is all of them.

    The end counts as a step: it must be the last sum. A step that is not whole yet counts for
    nothing and against nothing.

    >>> n_right_steps(read_sum("7+8+9="), "7+8:5;5+9:7;")
    (1, False)
    """
    working, mark, end = text.rpartition("~")[2].partition("#")
    steps, rest = working.split(";")[:-1], working.split(";")[-1]
    n = 0
    for said, right in zip(steps, asked.steps, strict=False):
        if said != right:
            return n, False
        n += 1
    if len(steps) > len(asked.steps) or (mark and rest):
        return n, False
    if mark:
        is_right = len(steps) == len(asked.steps) and end == asked.answer[-1]
        return n + is_right, is_right
    return n, True


def encode(text: str) -> list[int]:
    """Ids of a text."""
    return [_IDS[symbol] for symbol in text]


def decode(ids: Sequence[int]) -> str:
    """The text of `ids` up to the first end."""
    ids = list(ids)
    ids = ids[: ids.index(END)] if END in ids else ids
    return "".join(_SYMBOLS[i] for i in ids)


def _try(asked: Sum, rng: random.Random) -> str:
    """A try: right, or as often wrong in one step, and worked out from there."""
    steps = asked.steps
    if rng.random() < 0.5:
        i = rng.randrange(len(steps))
        slip = (int(steps[i][-1]) + rng.randrange(1, BASE)) % BASE
        steps = (*steps[:i], f"{steps[i][:-1]}{slip}", *asked.steps_from(i + 1, slip))
    return "".join(f"{step};" for step in steps) + "~"
