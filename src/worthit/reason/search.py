"""Search over steps: a verifier looks at texts before they are whole, and the better ones go on.

- `beam_search` keeps `width` texts and goes on with each of them `branch` times (Snell et al. 2024,
  "Scaling LLM Test-Time Compute Optimally can be More Effective than Scaling Model Parameters",
  arXiv:2408.03314, section 5.2, where N is `width * branch` and M is `branch`).
- `tree_search` always goes on with the most promising text of all, as long as tokens are left: best
  first, and backtracking where a step was a mistake (Yao et al. 2023, "Tree of Thoughts: Deliberate
  Problem Solving with Large Language Models", arXiv:2305.10601, section 3, with a priority queue in
  place of depth first).

How a text goes on is an `Expand`: `by_steps` draws a step up to a token that ends one;
`by_tokens` takes the likeliest next tokens, which with a text's log-probability as its score is
the beam search of old.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence

from worthit.decode.engine.admission import MAX_LOGPROBS
from worthit.decode.engine.chooser import mixed
from worthit.decode.engine.request import Request
from worthit.errors import InputError
from worthit.reason.generator import EMPTY, GREEDY, Draft, Generator, Spent
from worthit.reason.question import Chosen, Question, ReadAnswer
from worthit.reason.verify import Score

# From `(question, draft)` pairs and a seed to a few longer drafts of each.
Expand = Callable[[Sequence[tuple[Question, Draft]], int, int], list[list[Draft]]]


def by_steps(
    generator: Generator, *, stops: Sequence[int], max_tokens: int, max_len: int
) -> Expand:
    """Each text goes on by sampled steps, up to one of `stops` or the end.

    Args:
        max_tokens: of a step.
        max_len: of a text; one that has not ended there goes on no more.
    """

    def expand(open_: Sequence[tuple[Question, Draft]], n: int, seed: int) -> list[list[Draft]]:
        places = [i for i, (_, draft) in enumerate(open_) if len(draft.ids) < max_len]
        drawn = generator.draw(
            [open_[i][0].prompt for i in places],
            n,
            max_tokens=[min(max_tokens, max_len - len(open_[i][1].ids)) for i in places],
            seed=seed,
            stops=stops,
            after=[open_[i][1] for i in places],
        )
        found: list[list[Draft]] = [[] for _ in open_]
        for i, longer in zip(places, drawn, strict=True):
            found[i] = longer
        return found

    return expand


def by_tokens(generator: Generator, *, max_len: int) -> Expand:
    """Each text goes on by its likeliest next tokens; it has ended at `max_len` at the latest.

    At most as many as an engine reports: 50.
    """

    def expand(open_: Sequence[tuple[Question, Draft]], n: int, seed: int) -> list[list[Draft]]:
        requests = [
            Request(
                prompt=[*question.prompt, *draft.ids],
                max_tokens=1,
                sampling=GREEDY,
                stop_ids=(),
                logprobs=min(n, MAX_LOGPROBS),
            )
            for question, draft in open_
        ]
        found = []
        for (_, draft), one in zip(open_, generator.engine.generate(requests), strict=True):
            top = one.samples[0].logprobs[0].top
            generator.spent += Spent(n_said=1)
            longer = []
            for rank, (token, logprob) in enumerate(top):
                is_end = token in generator.ends
                ids = draft.ids if is_end else (*draft.ids, token)
                longer.append(
                    Draft(
                        ids=ids,
                        text=generator.read(ids),
                        logprob=draft.logprob + logprob,
                        # One pass gives all of them.
                        n_said=draft.n_said + (rank == 0),
                        is_ended=is_end or len(ids) >= max_len,
                        stopped_by=token if is_end else None,
                    )
                )
            found.append(longer)
        return found

    return expand


def beam_search(
    questions: Sequence[Question],
    *,
    expand: Expand,
    score: Score,
    read_answer: ReadAnswer,
    width: int,
    branch: int,
    max_steps: int,
    seed: int = 0,
    final: Score | None = None,
) -> list[Chosen]:
    """Keep the `width` best texts of each question, step by step.

    The first step draws `width * branch`. Equal scores keep the order of drawing. Texts that have
    ended stay in the beam with their score. Of all whole texts left, the best by `final` (`score`
    where it is not given) is chosen.

    Args:
        max_steps: after which what is not whole is given up.
    """
    _at_least(width=width, branch=branch, max_steps=max_steps)
    beams: list[list[Draft]] = [[EMPTY] for _ in questions]
    n_said = [0] * len(questions)
    for step in range(max_steps):
        places = [
            (i, draft) for i, beam in enumerate(beams) for draft in beam if not draft.is_ended
        ]
        if not places:
            break
        n = width * branch if step == 0 else branch
        grown = expand([(questions[i], draft) for i, draft in places], n, mixed(seed, step))
        pools: list[list[Draft]] = [[d for d in beam if d.is_ended] for beam in beams]
        for (i, before), longer in zip(places, grown, strict=True):
            n_said[i] += sum(draft.n_said - before.n_said for draft in longer)
            pools[i] += longer
        beams = [
            _best(question, pool, score, width)
            for question, pool in zip(questions, pools, strict=True)
        ]
    found = []
    for question, beam, n in zip(questions, beams, n_said, strict=True):
        whole = [draft for draft in beam if draft.is_ended]
        found.append(_chosen(question, whole, final or score, read_answer, n))
    return found


def tree_search(
    questions: Sequence[Question],
    *,
    expand: Expand,
    score: Score,
    read_answer: ReadAnswer,
    branch: int,
    max_tokens: int,
    n_whole: int = 1,
    seed: int = 0,
    final: Score | None = None,
) -> list[Chosen]:
    """Go on with the most promising text of each question until tokens run out.

    Of equal scores the longer text goes first, so that a verifier that likes everything makes this
    a plain walk to the end. The search of a question ends with its `n_whole`-th whole text, when
    nothing is left to go on with, or once `max_tokens` are said.
    """
    _at_least(branch=branch, max_tokens=max_tokens, n_whole=n_whole)
    order = itertools.count()
    # (-score, -length, order, draft): the heap's first is the most promising.
    heaps: list[list[tuple[float, int, int, Draft]]] = [
        [(0.0, 0, next(order), EMPTY)] for _ in questions
    ]
    whole: list[list[Draft]] = [[] for _ in questions]
    n_said = [0] * len(questions)
    for step in itertools.count():
        places = []
        for i, heap in enumerate(heaps):
            while heap and len(whole[i]) < n_whole and n_said[i] < max_tokens:
                draft = heapq.heappop(heap)[-1]
                if not draft.is_ended:
                    places.append((i, draft))
                    break
                whole[i].append(draft)
        if not places:
            break
        grown = expand([(questions[i], draft) for i, draft in places], branch, mixed(seed, step))
        for (i, before), longer in zip(places, grown, strict=True):
            n_said[i] += sum(draft.n_said - before.n_said for draft in longer)
            for value, draft in zip(score(questions[i], longer), longer, strict=True):
                heapq.heappush(heaps[i], (-value, -len(draft.ids), next(order), draft))
    found = []
    for i, question in enumerate(questions):
        # What was whole and never came to the front is better than nothing.
        rest = [entry[-1] for entry in sorted(heaps[i]) if entry[-1].is_ended]
        texts = whole[i] or rest
        found.append(_chosen(question, texts, final or score, read_answer, n_said[i]))
    return found


def _best(question: Question, pool: list[Draft], score: Score, width: int) -> list[Draft]:
    if len(pool) <= width:
        return pool
    scores = score(question, pool)
    kept = sorted(sorted(range(len(pool)), key=lambda i: -scores[i])[:width])
    return [pool[i] for i in kept]


def _chosen(
    question: Question, whole: list[Draft], score: Score, read_answer: ReadAnswer, n_said: int
) -> Chosen:
    if not whole:
        return Chosen(question=question, draft=None, answer=None, n_said=n_said)
    scores = score(question, whole)
    best = whole[max(range(len(whole)), key=scores.__getitem__)]
    return Chosen(
        question=question,
        draft=best,
        answer=read_answer(best.text),
        n_said=n_said,
        drafts=tuple(whole),
        scores=tuple(scores),
    )


def _at_least(**values: int) -> None:
    problems = [f"{name}: must be at least 1, got {n}" for name, n in values.items() if n < 1]
    if problems:
        raise InputError(*problems)
