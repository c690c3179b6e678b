"""Budget forcing: a model is kept thinking when it would stop, and stopped when it would not.

Muennighoff et al. 2025, "s1: Simple test-time scaling", arXiv:2501.19393, section 3.1: where the
model ends its thinking too early, the token that ends it is taken away and "Wait" put in its place;
where it thinks too long, that token is put behind what it has, and it must answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from worthit.decode.engine.chooser import mixed
from worthit.decode.sampling import Sampling
from worthit.errors import InputError
from worthit.reason.generator import EMPTY, GREEDY, Draft, Generator
from worthit.reason.question import Chosen, Question, ReadAnswer


@dataclass(frozen=True, kw_only=True)
class Thinking:
    """How a model's thinking is told apart from its answer.

    Attributes:
        ends: tokens each of which ends the thinking, and are part of the text.
        close: what is put behind thinking that is cut off; begins with what ends it.
        wait: what stands in place of the end where thinking must go on.
    """

    ends: tuple[int, ...]
    close: tuple[int, ...]
    wait: tuple[int, ...]


def budget_forcing(
    generator: Generator,
    questions: Sequence[Question],
    *,
    thinking: Thinking,
    read_answer: ReadAnswer,
    n_waits: int = 0,
    max_thinking: int,
    max_answer: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> list[Chosen]:
    """Think, at least `n_waits` times longer than the model would, and answer.

    Args:
        n_waits: ends of thinking that are taken away, one after another.
        max_thinking: tokens of thinking said; then it is closed. Those put in are not counted.
        max_answer: tokens of the answer.

    Raises:
        InputError: no token ends the thinking.
    """
    if not thinking.ends or not thinking.close:
        raise InputError("thinking: needs a token that ends it; see Thinking")
    drafts = [EMPTY] * len(questions)
    for round_ in range(n_waits + 1):
        open_ = [i for i, d in enumerate(drafts) if _may_think(d, max_thinking, round_)]
        if not open_:
            break
        if round_:
            for i in open_:
                drafts[i] = _waiting(generator, drafts[i], thinking)
        thought = generator.draw(
            [questions[i].prompt for i in open_],
            max_tokens=[max_thinking - drafts[i].n_said for i in open_],
            seed=mixed(seed, round_),
            sampling=sampling,
            stops=thinking.ends,
            after=[drafts[i] for i in open_],
        )
        for i, (draft,) in zip(open_, thought, strict=True):
            drafts[i] = draft
    # What was cut off is closed; a text that its model ended altogether is closed as well.
    drafts = [
        d if d.stopped_by in thinking.ends else generator.joined(d, thinking.close) for d in drafts
    ]
    answered = generator.draw(
        [question.prompt for question in questions],
        max_tokens=max_answer,
        seed=mixed(seed, n_waits + 1),
        sampling=sampling,
        after=drafts,
    )
    return [
        Chosen(
            question=question,
            draft=draft,
            answer=read_answer(draft.text),
            n_said=draft.n_said,
            drafts=(draft,),
        )
        for question, (draft,) in zip(questions, answered, strict=True)
    ]


def _may_think(draft: Draft, max_thinking: int, round_: int) -> bool:
    """At first everybody; later who stopped by itself and has tokens left."""
    return round_ == 0 or (draft.stopped_by is not None and draft.n_said < max_thinking)


def _waiting(generator: Generator, draft: Draft, thinking: Thinking) -> Draft:
    """`draft` with `wait` in place of what ended it."""
    ids: tuple[int, ...] = draft.ids
    if ids and ids[-1] in thinking.ends and draft.stopped_by in thinking.ends:
        ids = ids[:-1]
    return generator.joined(replace(draft, ids=ids), thinking.wait)
