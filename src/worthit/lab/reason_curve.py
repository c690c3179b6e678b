"""Accuracy against tokens of every strategy on a kind of question: what `worthit reason` draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from worthit.lab.reasoning import Kind
from worthit.reason import Chosen, Generator, Question, best_of_n, once, revise
from worthit.reason.curve import Point, frontier, of_chosen, of_samples, point
from worthit.reason.verify import by_logprob

# Questions that are answered side by side: between two of these groups there is word of progress.
GROUP = 8
OnGroup = Callable[[str, int, int], None]


def curve(
    generator: Generator,
    kind: Kind,
    *,
    n: int,
    n_revisions: int,
    seed: int,
    on_group: OnGroup = lambda what, done, of: None,
) -> dict[str, Any]:
    """Every strategy at every number of tries: points, and the ones to take at each budget.

    Args:
        n: samples of each question; every k up to it is estimated from them.
        n_revisions: answers one after another; below 2 none are tried.
        on_group: called with what is done, how many questions of how many.
    """
    shared: dict[str, Any] = {"read_answer": kind.read_answer, "max_tokens": kind.max_tokens}

    def answered(
        what: str, strategy: Callable[[tuple[Question, ...], int], list[Chosen]]
    ) -> list[Chosen]:
        found: list[Chosen] = []
        for i, group in enumerate(grouped(kind.questions)):
            found += strategy(group, seed + i)
            on_group(what, len(found), len(kind.questions))
        return found

    greedy = answered("greedy", lambda group, seed: once(generator, group, seed=seed, **shared))
    sampled = answered(
        f"{n} samples",
        lambda group, seed: best_of_n(generator, group, score=by_logprob, n=n, seed=seed, **shared),
    )
    points = [of_chosen("one greedy answer", 1, greedy)]
    points += of_samples(sampled, kind.read_answer, doubled(n), [one.scores for one in sampled])
    again = kind.again
    if again is not None and n_revisions > 1:
        revised = answered(
            "revisions",
            lambda group, seed: revise(
                generator, group, again=again, n=n_revisions, seed=seed, **shared
            ),
        )
        points += of_revisions(revised, kind)
    real = [p for p in points if not p.is_oracle]
    return {
        "points": [p.to_json() for p in points],
        "optimal": [p.to_json() for p in frontier(real)],
        "optimal_with_check": [p.to_json() for p in frontier(points)],
        "spent": asdict(generator.spent),
        "questions": [
            {
                "text": one.question.text,
                "greedy": one.draft.text if one.draft is not None else "",
                "is_greedy_right": one.is_right,
                "n_right": sum(
                    a is not None and one.question.is_right(a)
                    for a in (kind.read_answer(d.text) for d in many.drafts)
                ),
                "n": len(many.drafts),
            }
            for one, many in zip(greedy, sampled, strict=True)
        ],
    }


def of_revisions(revised: list[Chosen], kind: Kind) -> list[Point]:
    """The last of k answers, and the commonest of them, for every k."""
    from worthit.reason import vote

    found = []
    for k in range(1, len(revised[0].drafts) + 1):
        tokens = [float(sum(d.n_said for d in one.drafts[:k])) for one in revised]
        last, voted = [], []
        for one in revised:
            answers = [kind.read_answer(d.text) for d in one.drafts[:k]]
            commonest = vote(answers[::-1])
            is_right = one.question.is_right
            last.append(float(answers[-1] is not None and is_right(answers[-1])))
            voted.append(float(commonest is not None and is_right(commonest)))
        found.append(point("revision, the last", k, last, tokens))
        found.append(point("revision, a vote", k, voted, tokens))
    return found


def doubled(n: int) -> list[int]:
    """1, 2, 4, ... up to n, and n."""
    return sorted({*(2**i for i in range(n.bit_length()) if 2**i <= n), n})


def grouped(questions: tuple[Question, ...]) -> Iterator[tuple[Question, ...]]:
    """Groups that are answered side by side."""
    for start in range(0, len(questions), GROUP):
        yield questions[start : start + GROUP]
