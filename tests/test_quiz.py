"""The quiz: questions are fair, and their answers are those of hand sums and of the commands."""

from __future__ import annotations

import json
import random
import shlex

import pytest
from click.testing import CliRunner

from worthit.cli._group import cli
from worthit.errors import InputError
from worthit.quiz import KINDS, MAX_QUESTIONS, how_large_is_the_cache, quiz


def test_the_same_seed_asks_the_same_and_nothing_twice() -> None:
    first, again = quiz(20, seed=3), quiz(20, seed=3)
    assert first == again != quiz(20, seed=4)
    assert len({q.text for q in first}) == 20


def test_every_question_has_one_right_choice() -> None:
    for question in quiz(MAX_QUESTIONS, seed=0):
        assert 3 <= len(question.choices) <= 4
        assert len(set(question.choices)) == len(question.choices)
        assert 0 <= question.answer < len(question.choices)


def test_the_right_choice_is_in_no_fixed_place() -> None:
    places = {q.answer for q in quiz(MAX_QUESTIONS, seed=1) if len(q.choices) == 4}
    assert places == {0, 1, 2, 3}


def test_every_kind_asks_something() -> None:
    for kind in KINDS:
        assert any(kind(random.Random(seed)) for seed in range(20)), kind.__name__


# Keys and values: 2 x layers x heads x head_dim x 2 bytes; MLA: layers x (latent + rope) x 2 bytes.
BY_HAND = {
    "llama-2-7b": (2 * 32 * 32 * 128 * 2, "512 KiB"),
    "deepseek-v3": (61 * (512 + 64) * 2, "68.6 KiB"),
    "llama-3.1-8b": (2 * 32 * 8 * 128 * 2, "128 KiB"),
}


def test_cache_sizes_are_those_of_a_hand_sum() -> None:
    seen = set()
    for seed in range(40):
        question = how_large_is_the_cache(random.Random(seed))
        name = "" if question is None else question.text.partition(",")[0]
        if question is not None and name in BY_HAND:
            n_bytes, text = BY_HAND[name]
            assert question.because.startswith(f"{n_bytes} bytes")
            assert question.choices[question.answer] == text
            seen.add(name)
    assert seen == {*BY_HAND}


def test_the_command_beside_a_verdict_gives_that_verdict() -> None:
    n_checked = 0
    for question in quiz(30, seed=2):
        if question.choices == ("apply", "defer", "never"):
            words = shlex.split(question.check.removeprefix("worthit "))
            result = CliRunner().invoke(cli, [*words, "--json"])
            assert result.exit_code == 0, result.output
            verdict = json.loads(result.stdout)["judge"]["verdicts"][0]["verdict"]
            assert verdict == question.choices[question.answer]
            n_checked += 1
    assert n_checked


def test_typed_answers_are_counted() -> None:
    questions = quiz(3, seed=5)
    right = "abcd"[questions[0].answer]
    wrong = "abcd"[(questions[1].answer + 1) % 3]
    result = CliRunner().invoke(
        cli, ["quiz", "--n", "3", "--seed", "5"], input=f"{right}\nx\n{wrong}\n\n"
    )
    assert result.exit_code == 0
    assert "1 of 3 right" in result.stdout
    assert [w for w in ("Right.", "No.", "Passed.") if w in result.stdout.splitlines()] == [
        "Right.",
        "No.",
        "Passed.",
    ]
    assert "type one of a, b, c" in result.stderr


def test_a_number_of_questions_that_there_are_not_is_refused() -> None:
    with pytest.raises(InputError, match="between 1 and 50 questions, got 51"):
        quiz(MAX_QUESTIONS + 1)
