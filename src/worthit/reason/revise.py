"""Sequential revision: a model sees what it answered, and answers again.

Madaan et al. 2023, "Self-Refine: Iterative Refinement with Self-Feedback", arXiv:2303.17651,
algorithm 1, without a feedback of its own; Snell et al. 2024, arXiv:2408.03314, section 6, where
the answer is chosen among all revisions by vote or by a verifier. Why the last is not simply taken:
Huang et al. 2023, "Large Language Models Cannot Self-Correct Reasoning Yet", arXiv:2310.01798.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from worthit.decode.engine.chooser import mixed
from worthit.errors import InputError
from worthit.reason.choose import vote
from worthit.reason.generator import Draft, Generator
from worthit.reason.question import Chosen, Question, ReadAnswer
from worthit.reason.verify import Score

# From a question and the answers so far to the prompt that asks for another.
Again = Callable[[Question, Sequence[Draft]], Sequence[int]]


def revise(
    generator: Generator,
    questions: Sequence[Question],
    *,
    again: Again,
    read_answer: ReadAnswer,
    n: int,
    max_tokens: int,
    seed: int = 0,
    score: Score | None = None,
) -> list[Chosen]:
    """`n` answers to each question, each after having seen those before it.

    Without a `score` the commonest is chosen, the latest of equals: where two are as common, the
    later one has seen the other.
    """
    if n < 1:
        raise InputError(f"n: must be at least 1, got {n}")
    drafts: list[list[Draft]] = [[] for _ in questions]
    for round_ in range(n):
        prompts = [
            again(question, so_far) if so_far else question.prompt
            for question, so_far in zip(questions, drafts, strict=True)
        ]
        drawn = generator.draw(prompts, max_tokens=max_tokens, seed=mixed(seed, round_))
        for so_far, (draft,) in zip(drafts, drawn, strict=True):
            so_far.append(draft)
    found = []
    for question, all_ in zip(questions, drafts, strict=True):
        answers = [read_answer(draft.text) for draft in all_]
        scores: list[float] = []
        if score is None:
            answer = vote(answers[::-1])
            best = len(answers) - 1 - answers[::-1].index(answer)
        else:
            scores = score(question, all_)
            best = max(range(n), key=scores.__getitem__)
        found.append(
            Chosen(
                question=question,
                draft=all_[best],
                answer=answers[best],
                n_said=sum(draft.n_said for draft in all_),
                drafts=tuple(all_),
                scores=tuple(scores),
            )
        )
    return found
