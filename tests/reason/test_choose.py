"""Drawing and choosing: tokens counted, probabilities true, votes as by hand."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from reason.models import END, Script, decoder, generator, question, words

from worthit.decode.sampling import Sampling
from worthit.errors import InputError
from worthit.reason import Generator, best_of_n, once, revise, self_consistency, vote
from worthit.reason.verify import (
    by_logprob,
    by_total_logprob,
    chance,
    exact,
    noisy,
    stated_number,
    value_of,
)


def test_samples_share_their_prompt_and_are_counted() -> None:
    gen = generator(decoder())
    (drafts,) = gen.draw([[1, 2, 3, 4, 1]], 6, max_tokens=4, seed=3)
    assert gen.spent.n_prompt == 5
    assert gen.spent.n_cached == 5 * 5
    assert gen.spent.n_said == sum(d.n_said for d in drafts)
    assert len({d.ids for d in drafts}) > 1
    again = generator(decoder()).draw([[1, 2, 3, 4, 1]], 6, max_tokens=4, seed=3)
    assert again == [drafts]


def test_logprobs_are_the_models_own() -> None:
    model = decoder()
    drawn = generator(model).draw([[1, 2], [3]], 5, max_tokens=4, seed=0)
    assert any(d.is_ended for one in drawn for d in one)
    for prompt, one in zip([[1, 2], [3]], drawn, strict=True):
        for draft in one:
            said = [*draft.ids, *([END] if draft.is_ended else [])]
            logits = model(torch.tensor([[*prompt, *said]]))[0, len(prompt) - 1 : -1]
            picked = logits.log_softmax(-1).gather(-1, torch.tensor(said)[:, None])
            assert draft.logprob == pytest.approx(float(picked.sum()), abs=1e-4)
            assert draft.n_said == len(said)


def test_a_text_that_is_gone_on_with_keeps_its_past() -> None:
    model = decoder(seed=6)
    (whole,) = generator(model).draw([[1, 2]], max_tokens=6, seed=0, sampling=Sampling())[0]
    gen = generator(model)
    (half,) = gen.draw([[1, 2]], max_tokens=2, seed=0, sampling=Sampling())[0]
    (rest,) = gen.draw([[1, 2]], max_tokens=4, seed=0, sampling=Sampling(), after=[half])[0]
    assert not half.is_ended
    assert rest.ids == whole.ids
    assert rest.n_said == whole.n_said
    assert rest.logprob == pytest.approx(whole.logprob, abs=1e-4)


def test_the_best_is_the_first_of_the_highest_score() -> None:
    script = Script([1, END], [2, END], [2, END], [3, END])
    gen = Generator(script, words, (END,))
    q = question(4, right="2")
    (found,) = best_of_n(gen, [q], score=exact(str), read_answer=str, n=4, max_tokens=3)
    assert found.is_right
    assert found.scores == (0, 1, 1, 0)
    assert found.draft is found.drafts[1]
    assert found.n_said == 8
    assert script.asked[0].n == 4


def test_scores_by_probability_are_a_mean_or_a_sum() -> None:
    gen = Generator(Script([1, 1, END], [1, END]), words, (END,))
    (drafts,) = gen.draw([[1]], 2, max_tokens=5, seed=0)
    assert by_logprob(question(1), drafts) == pytest.approx([-2.5 / 3, -1.5 / 2])
    assert by_total_logprob(question(1), drafts) == pytest.approx([-2.5, -1.5])


def test_votes_are_counted_and_weighed() -> None:
    for answers in itertools.product(["a", "b", None], repeat=4):
        counts = {a: answers.count(a) for a in answers if a is not None}
        top = max(counts.values(), default=0)
        expected = next((a for a in answers if a is not None and counts[a] == top), None)
        assert vote(answers) == expected
    assert vote(["a", "b", "b"], [3.0, 1.0, 1.5]) == "a"
    with pytest.raises(InputError, match="weight: a vote must not count below nothing"):
        vote(["a"], [-1.0])


def test_a_majority_needs_no_verifier() -> None:
    script = Script([3, END], [2, END], [4], [2, END])
    gen = Generator(script, words, (END,))

    def read(text: str) -> str | None:
        return None if text == "4" else text

    (found,) = self_consistency(gen, [question(1, right="2")], read_answer=read, n=4, max_tokens=3)
    assert (found.answer, found.is_right) == ("2", True)
    with pytest.raises(InputError, match="n: must be at least 1, got 0"):
        self_consistency(gen, [question(1)], read_answer=read, n=0, max_tokens=3)


def test_once_is_greedy() -> None:
    model = decoder()
    (found,) = once(generator(model), [question(1, 2)], read_answer=str, max_tokens=5)
    ids = [1, 2]
    for _ in range(5):
        token = int(model(torch.tensor([ids]))[0, -1].argmax())
        if token == END:
            break
        ids.append(token)
    assert found.draft is not None
    assert list(found.draft.ids) == ids[2:]


def test_revision_shows_what_was_said_and_takes_the_latest_of_equals() -> None:
    script = Script([2, END], [3, END], [3, END], [2, END])
    gen = Generator(script, words, (END,))
    (found,) = revise(
        gen,
        [question(1, right="2")],
        again=lambda q, drafts: [*q.prompt, *(i for d in drafts for i in (*d.ids, 4))],
        read_answer=str,
        n=4,
        max_tokens=3,
    )
    assert [list(r.prompt) for r in script.asked] == [
        [1],
        [1, 2, 4],
        [1, 2, 4, 3, 4],
        [1, 2, 4, 3, 4, 3, 4],
    ]
    assert found.answer == "2"
    assert found.draft is found.drafts[3]


def test_a_noisy_verifier_errs_at_its_rate_and_always_alike() -> None:
    rng = random.Random(0)
    gen = Generator(
        Script(*[[rng.randrange(1, 5) for _ in range(9)] for _ in range(900)]), words, ()
    )
    (drafts,) = gen.draw([[1]], 900, max_tokens=9, seed=0)
    score = noisy(lambda q, ds: [1.0] * len(ds), 0.25)
    found = score(question(1), drafts)
    assert score(question(1), drafts) == found
    # Four standard errors of 900 flips.
    assert abs(found.count(0.0) / 900 - 0.25) < 0.06
    assert 0 <= chance(1, "x") < 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("What is 7 + 5?", 12),
        ("3 - -2 = ?", 5),
        ("Compute 2*3-4*5", -14),
        ("007 x 8", 56),
        ("What is 12?", None),
        ("1 + 1 or 2 + 2?", None),
        ("1111111111111 + 1", None),
    ],
)
def test_arithmetic_is_read_from_a_question(text: str, value: int | None) -> None:
    assert value_of(text) == value


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("15", "15"),
        ("7 + 8 = 15.", "15"),
        ("The answer is **1,500** of 2", "1500"),
        ("The sum is 7 + 8, that is 15, as 3 shows", "15"),
        ("7 + 8 = 7 + 8", "8"),
        ("is 1.5 or 2", "1.5"),
        ("nothing", None),
    ],
)
def test_a_number_is_read_where_a_text_states_it(text: str, number: str | None) -> None:
    assert stated_number(text) == number
