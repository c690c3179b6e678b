"""Search in the limits where its result is known: greedy, and everything."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from reason.models import END, Script, decoder, generator, question, words

from worthit.decode.sampling import Sampling
from worthit.errors import InputError
from worthit.nn import Decoder
from worthit.reason import Draft, Generator, Question, beam_search, once, tree_search
from worthit.reason.search import by_steps, by_tokens
from worthit.reason.verify import by_total_logprob, exact

MAX_LEN = 3


def every_text(model: Decoder, prompt: Sequence[int]) -> dict[tuple[int, ...], float]:
    """The log-probability of every text of at most MAX_LEN tokens, ended or cut there."""
    found = {}
    tokens = range(1, model.spec.vocab_size)
    for n in range(MAX_LEN + 1):
        for text in itertools.product(tokens, repeat=n):
            said = text if n == MAX_LEN else (*text, END)
            logits = model(torch.tensor([[*prompt, *said]]))[0, len(prompt) - 1 : -1]
            picked = logits.log_softmax(-1).gather(-1, torch.tensor(said)[:, None])
            found[text] = float(picked.sum())
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_beam_of_full_width_is_exhaustive_and_of_one_is_greedy(seed: int) -> None:
    model = decoder(4, seed=seed, scale=0.3)
    gen, q = generator(model), question(1, 2)
    expand = by_tokens(gen, max_len=MAX_LEN)

    def searched(width: int, branch: int) -> Draft:
        (found,) = beam_search(
            [q],
            expand=expand,
            score=by_total_logprob,
            read_answer=str,
            width=width,
            branch=branch,
            max_steps=MAX_LEN,
        )
        assert found.draft is not None
        return found.draft

    texts = every_text(model, q.prompt)
    best = max(texts, key=texts.__getitem__)
    full = searched(64, 4)
    assert full.ids == best
    assert full.logprob == pytest.approx(texts[best], abs=1e-4)
    (greedy,) = once(gen, [q], read_answer=str, max_tokens=MAX_LEN)
    assert greedy.draft is not None
    # Width 1 sees one token after another: the likeliest each time.
    assert searched(1, 1).ids == greedy.draft.ids


def test_a_tree_with_tokens_enough_is_exhaustive() -> None:
    model = decoder(4, seed=1, scale=0.3)
    q = question(1)
    (found,) = tree_search(
        [q],
        expand=by_tokens(generator(model), max_len=MAX_LEN),
        score=by_total_logprob,
        read_answer=str,
        branch=4,
        max_tokens=10_000,
        n_whole=10_000,
    )
    texts = every_text(model, q.prompt)
    assert {d.ids for d in found.drafts} == set(texts)
    assert found.draft is not None
    assert found.draft.ids == max(texts, key=texts.__getitem__)
    # Best first with falling scores: the first whole text is already the best one.
    (first,) = tree_search(
        [q],
        expand=by_tokens(generator(model), max_len=MAX_LEN),
        score=by_total_logprob,
        read_answer=str,
        branch=4,
        max_tokens=10_000,
    )
    assert first.draft is not None
    assert first.draft.ids == found.draft.ids
    assert first.n_said < found.n_said


def test_greedy_steps_of_one_beam_are_greedy_decoding() -> None:
    model = decoder(6, seed=2)
    gen = Generator(generator(model).engine, words, (END,), sampling=Sampling())
    for prompt in ([1, 2], [3], [5, 5, 1]):
        q = question(*prompt)
        (plain,) = once(gen, [q], read_answer=str, max_tokens=12)
        (stepped,) = beam_search(
            [q],
            expand=by_steps(gen, stops=(3,), max_tokens=12, max_len=12),
            score=by_total_logprob,
            read_answer=str,
            width=1,
            branch=1,
            max_steps=12,
        )
        assert plain.draft is not None
        if plain.draft.is_ended:
            assert stepped.draft is not None
            assert stepped.draft.ids == plain.draft.ids


def test_a_step_verifier_prunes_before_the_end() -> None:
    # Steps end in 9. Of four first steps two are good; each good one goes on twice.
    script = Script([1, 9], [2, 9], [1, 9], [3, 9], [5, END], [6, END], [7, END], [6, END])
    gen = Generator(script, words, (END,))

    def good(q: Question, drafts: Sequence[Draft]) -> list[float]:
        return [float(d.ids[0] == 1) + (d.ids[-1] == 7) for d in drafts]

    (found,) = beam_search(
        [question(4, right="1 9 7")],
        expand=by_steps(gen, stops=(9,), max_tokens=5, max_len=20),
        score=good,
        read_answer=str,
        width=2,
        branch=2,
        max_steps=4,
    )
    assert found.is_right
    assert found.n_said == 16
    assert [list(r.prompt) for r in script.asked] == [[4]] * 4 + [[4, 1, 9]] * 4


def test_a_tree_turns_back_from_a_mistake() -> None:
    script = Script([1, 9], [2, 9], [3, 9], [3, 9], [7, END], [8, END])
    gen = Generator(script, words, (END,))
    likes = {(1, 9): 0.9, (2, 9): 0.8, (1, 9, 3, 9): 0.1, (2, 9, 7): 1.0, (2, 9, 8): 0.0}
    (found,) = tree_search(
        [question(4, right="2 9 7")],
        expand=by_steps(gen, stops=(9,), max_tokens=5, max_len=20),
        score=lambda q, drafts: [likes[d.ids] for d in drafts],
        read_answer=str,
        branch=2,
        max_tokens=100,
    )
    assert found.is_right
    assert found.n_said == 12


def test_a_search_without_a_whole_text_answers_nothing() -> None:
    gen = Generator(Script([1, 9], [1, 9]), words, (END,))
    (found,) = beam_search(
        [question(4)],
        expand=by_steps(gen, stops=(9,), max_tokens=5, max_len=20),
        score=exact(str),
        read_answer=str,
        width=1,
        branch=2,
        max_steps=1,
    )
    assert (found.draft, found.answer, found.is_right, found.n_said) == (None, None, False, 4)
    with pytest.raises(InputError, match="width: must be at least 1, got 0"):
        beam_search(
            [question(4)],
            expand=by_steps(gen, stops=(9,), max_tokens=5, max_len=20),
            score=exact(str),
            read_answer=str,
            width=0,
            branch=2,
            max_steps=1,
        )


def test_a_text_without_an_end_goes_on_no_further_than_it_may() -> None:
    script = Script([1, 9], [1, 1, 1, 1])
    gen = Generator(script, words, (END,))
    (found,) = tree_search(
        [question(4)],
        expand=by_steps(gen, stops=(9,), max_tokens=3, max_len=4),
        score=exact(str),
        read_answer=str,
        branch=1,
        max_tokens=100,
    )
    assert [r.max_tokens for r in script.asked] == [3, 2]
    assert (found.draft, found.n_said) == (None, 4)
