"""Budget forcing, token by token."""

from __future__ import annotations

import pytest
from reason.models import END, Script, decoder, generator, question, words

from worthit.errors import InputError
from worthit.reason import Chosen, Generator, Thinking, budget_forcing, once

THOUGHT, WAIT = 8, 9
THINKING = Thinking(ends=(THOUGHT,), close=(THOUGHT,), wait=(WAIT,))


def forced(script: Script, *, n_waits: int, max_thinking: int = 20) -> Chosen:
    (found,) = budget_forcing(
        Generator(script, words, (END,)),
        [question(1, 2)],
        thinking=THINKING,
        read_answer=lambda text: text.partition(" 8 ")[2],
        n_waits=n_waits,
        max_thinking=max_thinking,
        max_answer=3,
    )
    return found


def asked(script: Script) -> list[tuple[list[int], int | None]]:
    return [(list(r.prompt), r.max_tokens) for r in script.asked]


def test_thinking_as_long_as_the_model_likes() -> None:
    script = Script([3, 4, THOUGHT], [5, END])
    found = forced(script, n_waits=0)
    assert asked(script) == [([1, 2], 20), ([1, 2, 3, 4, THOUGHT], 3)]
    assert (found.answer, found.n_said) == ("5", 5)


def test_an_end_is_taken_away_and_wait_stands_in_its_place() -> None:
    script = Script([3, THOUGHT], [4, THOUGHT], [6, END])
    found = forced(script, n_waits=1)
    assert asked(script) == [
        ([1, 2], 20),
        ([1, 2, 3, WAIT], 18),
        ([1, 2, 3, WAIT, 4, THOUGHT], 3),
    ]
    assert found.draft is not None
    assert found.draft.ids == (3, WAIT, 4, THOUGHT, 6)
    # Two and two of thinking, two of the answer; nobody said the token that was put in.
    assert found.n_said == 6


def test_thinking_that_goes_on_is_cut_off_and_closed() -> None:
    script = Script([3, 3, 3, 3, 3], [5, END])
    found = forced(script, n_waits=2, max_thinking=4)
    assert asked(script) == [([1, 2], 4), ([1, 2, 3, 3, 3, 3, THOUGHT], 3)]
    assert (found.answer, found.n_said) == ("5", 6)


def test_a_limit_holds_over_all_rounds() -> None:
    script = Script([3, THOUGHT], [4, 4, 4, 4], [5, END])
    found = forced(script, n_waits=3, max_thinking=5)
    assert [n for _, n in asked(script)] == [5, 3, 3]
    assert found.draft is not None
    assert found.draft.ids == (3, WAIT, 4, 4, 4, THOUGHT, 5)


def test_a_text_that_ended_before_its_thinking_did_is_closed() -> None:
    script = Script([3, END], [5, END])
    found = forced(script, n_waits=0)
    assert asked(script)[1] == ([1, 2, 3, THOUGHT], 3)
    assert found.answer == "5"


def test_without_force_it_is_plain_decoding() -> None:
    model = decoder(10, seed=5)
    gen, q = generator(model), question(1, 2)
    (plain,) = once(gen, [q], read_answer=str, max_tokens=20)
    assert plain.draft is not None
    end = plain.draft.ids[2]
    (forced_,) = budget_forcing(
        gen,
        [q],
        thinking=Thinking(ends=(end,), close=(end,), wait=(WAIT,)),
        read_answer=str,
        max_thinking=10,
        max_answer=6,
    )
    assert forced_.draft is not None
    n = len(forced_.draft.ids)
    assert n > 3
    assert forced_.draft.ids == plain.draft.ids[:n]


def test_thinking_needs_an_end() -> None:
    gen = Generator(Script(), words, (END,))
    with pytest.raises(InputError, match="thinking: needs a token that ends it"):
        budget_forcing(
            gen,
            [],
            thinking=Thinking(ends=(), close=(), wait=(1,)),
            read_answer=str,
            max_thinking=1,
            max_answer=1,
        )
