"""Preferences over verb forms: right is right, wrong is wrong, and bias is as much as asked for.

Forms are checked against lists written by hand, not against the rules that made them.
"""

from __future__ import annotations

import pytest

from worthit.errors import InputError, UnknownName
from worthit.lab.tasks.verb_forms import (
    Question,
    check,
    framed,
    preferences,
    questions,
    ratings,
)
from worthit.spec.preferences import from_rows

ALL = (*questions("train"), *questions("test"))
# Verb, tense, pronoun: right, and two that are wrong.
KNOWN = {
    ("go", "past", "she"): ("she went", {"she goed", "she goes"}),
    ("go", "perfect", "they"): ("they have gone", {"they have went", "they have goed"}),
    ("do", "present", "he"): ("he does", {"he do", "he did"}),
    ("have", "present", "she"): ("she has", {"she have", "she had"}),
    ("come", "perfect", "I"): ("I have come", {"I have came", "I came"}),
    ("stop", "past", "we"): ("we stopped", {"we stop", "we have stopped"}),
    ("carry", "present", "he"): ("he carries", {"he carry", "he carried"}),
    ("play", "past", "you"): ("you played", {"you play", "you have played"}),
    ("visit", "perfect", "he"): ("he has visited", {"he has visit", "he visited"}),
}


@pytest.mark.parametrize("asked", KNOWN)
def test_forms_are_those_of_a_grammar(asked: tuple[str, str, str]) -> None:
    (question,) = [q for q in ALL if (q.verb, q.tense, q.pronoun) == asked]
    right, wrong = KNOWN[asked]
    assert question.right == right
    assert wrong <= set(question.wrong)


def test_every_question_has_two_wrong_answers_and_no_right_one_among_them() -> None:
    for question in ALL:
        assert len(set(question.wrong)) >= 2
        assert not any(check(question, wrong) for wrong in question.wrong)
        assert not any(check(question, framed(wrong)) for wrong in question.wrong)


def test_splits_share_no_verb() -> None:
    train, test = ({q.verb for q in questions(split)} for split in ("train", "test"))
    assert train.isdisjoint(test)
    assert (len(train), len(test)) == (100, 52)


def test_the_check_takes_the_form_alone_or_in_its_frame() -> None:
    question = Question("go", "past", "she", "she went", ("she goed",))
    for said in ("she went", " she went\n", "she went.", framed("she went")):
        assert check(question, said)
    for said in ("went", "she goed", "She went", "she went she went", "", framed("she goed")):
        assert not check(question, said)


def test_noise_and_imbalance_are_as_much_as_asked_for() -> None:
    noisy = preferences("train", 1000, seed=0, flipped=0.3)
    flipped = [check(p.question, p.rejected) for p in noisy]
    assert sum(flipped) / 1000 == pytest.approx(0.3, abs=0.04)
    assert all(
        check(p.question, p.chosen) != turned for p, turned in zip(noisy, flipped, strict=True)
    )
    rated = ratings(noisy, good=0.1, seed=1)
    assert sum(is_good for _, _, is_good in rated) == pytest.approx(100, abs=30)
    assert sum(not is_good for _, _, is_good in rated) == 1000


def test_frames_are_in_as_many_of_each_as_asked_for_and_change_nothing_else() -> None:
    bare = preferences("train", 1000, seed=0)
    biased = preferences("train", 1000, seed=0, frames=(0.9, 0.1))
    assert [p.question for p in bare] == [p.question for p in biased]
    chosen, rejected = (
        sum(getattr(b, side) == framed(getattr(a, side)) for a, b in zip(bare, biased, strict=True))
        / 1000
        for side in ("chosen", "rejected")
    )
    assert chosen == pytest.approx(0.9, abs=0.03)
    assert rejected == pytest.approx(0.1, abs=0.03)
    assert all(check(p.question, p.chosen) for p in biased)


def test_seeds_draw_other_pairs_and_no_more_than_there_are() -> None:
    assert preferences("test", 50, seed=0) == preferences("test", 50, seed=0)
    assert preferences("test", 50, seed=0) != preferences("test", 50, seed=1)
    with pytest.raises(InputError, match="has 936 questions, got 5000"):
        preferences("test", 5000, seed=0)
    with pytest.raises(UnknownName, match="train"):
        questions("trian")


def test_rows_are_what_the_reader_of_preferences_takes() -> None:
    data = from_rows([p.row for p in preferences("train", 5, seed=0)])
    assert data.shape == "pair"
    assert data.is_chat
    assert data.examples[0].chosen is not None
