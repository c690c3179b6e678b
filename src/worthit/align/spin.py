"""SPIN: a model plays against who it was a round ago, with demonstrations alone.

Chen et al. 2024, "Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models",
arXiv:2401.01335, algorithm 1 and equation 4.7:

    for t = 0, 1, ...:  y' ~ pi_t(.|x) for every demonstration (x, y)
        pi_{t+1} = argmin mean of -log sigma(lambda (log pi/pi_t(y|x) - log pi/pi_t(y'|x)))

| paper | here |
|---|---|
| y, y' | the demonstration, chosen; the model's own answer, rejected |
| pi_t | the model as a round begins: it answers, and it is the reference |
| lambda | `beta` |

It is DPO on pairs that cost nothing, drawn anew each round. When the model answers as the data do
there is nothing left to tell apart: no round gains beyond the demonstrations, and most of what is
gained comes in the first. Answers that equal their demonstration are left out; where all do, it
stops.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from worthit._record import record
from worthit.align.data import Pairs
from worthit.align.dpo import DPO
from worthit.align.learn import Learned, learn_pairs
from worthit.align.sample import sample
from worthit.align.sequences import Demonstration, Ids, Pair
from worthit.errors import InputError
from worthit.nn import Decoder
from worthit.train import Progress, Recipe
from worthit.train.history import disk_error

ANSWERS = "answers.json"


@record
class SPIN(DPO):
    """Self-play fine-tuning: the loss of a round."""

    name: ClassVar[str] = "spin"

    n_rounds: int = 3
    temperature: float = 1.0

    def __post_init__(self) -> None:
        DPO.__post_init__(self)
        if self.n_rounds < 1:
            raise InputError(f"n_rounds: must be at least 1, got {self.n_rounds}")


@dataclass(frozen=True)
class Round:
    """One round: how many answers differed from their demonstrations, and what was learned."""

    n_different: int
    n: int
    learned: Learned | None


def self_play(
    model: Decoder,
    train: Sequence[Demonstration],
    validation: Sequence[Demonstration],
    method: SPIN,
    recipe: Recipe,
    *,
    seed: int,
    stop_ids: Sequence[int],
    max_tokens: int,
    folder: Path | None = None,
    progress: Progress | None = None,
    on_round: Callable[[int, Round], None] | None = None,
) -> list[Round]:
    """Play `method.n_rounds`, training `model` in place; `recipe` is of one round.

    Args:
        folder: keeps each round's answers and checkpoints; the same call goes on.
        on_round: called after each.
    """
    rounds: list[Round] = []
    for t in range(method.n_rounds):
        here = None if folder is None else folder / f"round-{t}"
        drawn = [
            _played(
                model,
                part,
                None if here is None else here / f"{name}-{ANSWERS}",
                method,
                seed=seed * 1009 + 2 * t + i,
                stop_ids=stop_ids,
                max_tokens=max_tokens,
            )
            for i, (name, part) in enumerate((("train", train), ("validation", validation)))
        ]
        different, held_out = (different_pairs(p, a) for p, a in drawn)
        if not different:
            rounds.append(Round(0, len(train), None))
            break
        data = Pairs(f"spin-{t}", different, held_out, vocab_size=model.spec.vocab_size)
        learned = learn_pairs(
            model, data, method, recipe, seed=seed + t, folder=here, progress=progress
        )
        rounds.append(Round(len(different), len(train), learned))
        if on_round is not None:
            on_round(t, rounds[-1])
    return rounds


def different_pairs(shown: Sequence[Demonstration], said: Sequence[Ids]) -> list[Pair]:
    """Demonstrations over the model's answers, where the two differ and there is an answer."""
    return [
        Pair(prompt=d.prompt, chosen=d.completion, rejected=answer)
        for d, answer in zip(shown, said, strict=True)
        if answer and answer != d.completion
    ]


def _played(
    model: Decoder,
    shown: Sequence[Demonstration],
    path: Path | None,
    method: SPIN,
    *,
    seed: int,
    stop_ids: Sequence[int],
    max_tokens: int,
) -> tuple[Sequence[Demonstration], list[Ids]]:
    """The model's answers; those of an interrupted round are kept, for the model has moved on."""
    if path is not None and path.is_file():
        return shown, [tuple(ids) for ids in json.loads(path.read_text(encoding="utf-8"))]
    answers = sample(
        model,
        [d.prompt for d in shown],
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        temperature=method.temperature,
        seed=seed,
    )
    if path is not None:
        beside = path.with_suffix(".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(answers), encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            raise disk_error(path, error) from error
    return shown, answers
