"""Several answers at once, and one chosen among them.

- `best_of_n`: the answer that a verifier likes best (Cobbe et al. 2021, "Training Verifiers to
  Solve Math Word Problems", arXiv:2110.14168, section 4).
- `self_consistency`: the answer that most texts come to, whatever their way there (Wang et al.
  2022, "Self-Consistency Improves Chain of Thought Reasoning in Language Models",
  arXiv:2203.11171, equation 1); with a score, votes are weighed by it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

from worthit.errors import InputError
from worthit.reason.generator import GREEDY, Draft, Generator
from worthit.reason.question import Chosen, Question, ReadAnswer
from worthit.reason.verify import Score

T = TypeVar("T", bound=Hashable)


def once(
    generator: Generator,
    questions: Sequence[Question],
    *,
    read_answer: ReadAnswer,
    max_tokens: int,
    seed: int = 0,
) -> list[Chosen]:
    """One greedy answer: what everything else is compared with."""
    prompts = [question.prompt for question in questions]
    drawn = generator.draw(prompts, max_tokens=max_tokens, seed=seed, sampling=GREEDY)
    return [
        Chosen(
            question=question,
            draft=draft,
            answer=read_answer(draft.text),
            n_said=draft.n_said,
            drafts=(draft,),
        )
        for question, (draft,) in zip(questions, drawn, strict=True)
    ]


def best_of_n(
    generator: Generator,
    questions: Sequence[Question],
    *,
    score: Score,
    read_answer: ReadAnswer,
    n: int,
    max_tokens: int,
    seed: int = 0,
) -> list[Chosen]:
    """Of `n` answers to each question the one of the highest score, the first of equals."""
    found = []
    for question, drafts in zip(
        questions, _drawn(generator, questions, n, max_tokens, seed), strict=True
    ):
        scores = score(question, drafts)
        best = max(range(n), key=scores.__getitem__)
        found.append(
            Chosen(
                question=question,
                draft=drafts[best],
                answer=read_answer(drafts[best].text),
                n_said=sum(draft.n_said for draft in drafts),
                drafts=tuple(drafts),
                scores=tuple(scores),
            )
        )
    return found


def self_consistency(
    generator: Generator,
    questions: Sequence[Question],
    *,
    read_answer: ReadAnswer,
    n: int,
    max_tokens: int,
    seed: int = 0,
    weight: Score | None = None,
) -> list[Chosen]:
    """Of `n` answers to each question the commonest; texts without an answer do not vote.

    Args:
        weight: of each text's vote, not negative; every vote counts alike without it.
    """
    found = []
    for question, drafts in zip(
        questions, _drawn(generator, questions, n, max_tokens, seed), strict=True
    ):
        answers = [read_answer(draft.text) for draft in drafts]
        weights = [1.0] * n if weight is None else weight(question, drafts)
        answer = vote(answers, weights)
        found.append(
            Chosen(
                question=question,
                draft=None if answer is None else drafts[answers.index(answer)],
                answer=answer,
                n_said=sum(draft.n_said for draft in drafts),
                drafts=tuple(drafts),
                scores=tuple(weights),
            )
        )
    return found


def vote(answers: Sequence[T | None], weights: Sequence[float] | None = None) -> T | None:
    """The answer with the most votes, the first of equals; None where nobody votes.

    >>> vote(["7", "12", None, "12"])
    '12'
    """
    totals: dict[T, float] = {}
    for answer, weight in zip(answers, weights or [1.0] * len(answers), strict=True):
        if weight < 0:
            raise InputError(f"weight: a vote must not count below nothing, got {weight}")
        if answer is not None:
            totals[answer] = totals.get(answer, 0.0) + weight
    return max(totals, key=totals.__getitem__) if totals else None


def _drawn(
    generator: Generator, questions: Sequence[Question], n: int, max_tokens: int, seed: int
) -> list[list[Draft]]:
    if n < 1:
        raise InputError(f"n: must be at least 1, got {n}")
    prompts = [question.prompt for question in questions]
    return generator.draw(prompts, n, max_tokens=max_tokens, seed=seed)
