"""Facts of preference data: hand sums, and data made with the property that is to be found."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest

from worthit.spec.codec import from_json, to_json
from worthit.spec.preference_facts import PreferenceFacts
from worthit.spec.preference_stats import facts_of, noise_of, wilson
from worthit.spec.preferences import from_rows


def pair(chosen: str, rejected: str, prompt: str = "p") -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def rated(completion: str, label: bool, prompt: str = "p") -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": label}


def facts(*rows: dict[str, Any]) -> PreferenceFacts:
    return facts_of(from_rows(rows))


def test_counts() -> None:
    f = facts(
        pair("a", "b"),
        pair("a", "b "),  # a blank more is no other answer
        pair("b", "a"),
        pair("a", "b", "q"),
        pair("a", "c"),
    )
    assert (f.shape, f.n, f.n_prompts, f.duplicates, f.contradictions) == ("pair", 5, 2, 1, 1)
    assert f.judged_twice == 1


def test_contradictions_of_binary_labels() -> None:
    f = facts(rated("a", True), rated("a", False), rated("b", True), rated("a", True, "q"))
    assert (f.contradictions, f.judged_twice, f.duplicates) == (1, 1, 0)
    assert f.desirable == 0.75


def test_noise_by_hand() -> None:
    # Of ten comparisons judged twice, three differ: 2 e (1 - e) = 0.3.
    rows = []
    for i in range(10):
        rows += [pair("a", "b", str(i)), pair(*("ba" if i < 3 else "ab"), str(i))]
    noise = facts(*rows).noise
    assert noise is not None
    assert math.isclose(2 * noise.share * (1 - noise.share), 0.3)
    assert noise.n == 10
    assert noise.low < noise.share < noise.high
    # A third label: of the three pairs of labels, two differ.
    once = facts(pair("a", "b"), pair("a", "b"), pair("b", "a")).noise
    assert once is not None
    assert once.share == 0.5  # 2/3 differ, more than chance


@pytest.mark.parametrize("e", [0.0, 0.1, 0.3])
def test_noise_that_was_put_in_is_found(e: float) -> None:
    draw = random.Random(0)
    rows = []
    for i in range(1000):
        for _ in range(2):
            rows.append(pair(*("ba" if draw.random() < e else "ab"), str(i)))
    noise = facts(*rows).noise
    assert noise is not None
    assert noise.low <= e <= noise.high
    assert noise.high - noise.low < 0.08


def test_without_repeats_there_is_no_estimate() -> None:
    f = facts(pair("a", "b"), pair("a", "b", "q"))
    assert f.noise is None
    assert f.noise_at_most is None  # too few to judge
    assert noise_of(0.5, 100).share == 0.5


@pytest.mark.parametrize("e", [0.0, 0.2, 0.5])
def test_what_words_can_tell_bounds_the_noise(e: float) -> None:
    draw = random.Random(1)
    rows = []
    for i in range(600):
        good = f"{draw.choice(['thanks', 'clearly', 'indeed'])} {i}"
        bad = f"{draw.choice(['whatever', 'dunno', 'nope'])} {i}"
        answers = (bad, good) if draw.random() < e else (good, bad)
        rows.append(pair(*answers, f"question {i}"))
    at_most = facts(*rows).noise_at_most
    assert at_most is not None
    assert e - 0.05 < at_most < e + 0.12


def test_length_by_hand() -> None:
    f = facts(pair("aaaa", "bb"), pair("aa", "bbbb"), pair("a" * 8, "b"), pair("cc", "dd"))
    assert f.longer is not None
    assert (f.longer.share, f.longer.n) == (2 / 3, 3)
    logs = [math.log(2), -math.log(2), math.log(8), 0.0]
    assert f.length_ratio is not None
    assert math.isclose(f.length_ratio, math.exp(sum(logs) / 4))
    # The same correlation, spelled out: two points a pair, each about the pair's mean.
    x = [s * d / 2 for d in logs for s in (1, -1)]
    y = [s / 2 for _ in logs for s in (1, -1)]
    assert f.length_correlation is not None
    assert math.isclose(f.length_correlation, np.corrcoef(x, y)[0, 1])


def test_length_of_binary_labels_counts_all_pairs() -> None:
    good, bad = ["aaa", "aaaaa", "a"], ["bb", "bbb"]
    f = facts(*(rated(a, True) for a in good), *(rated(b, False) for b in bad))
    wins = sum((len(a) > len(b)) + (len(a) == len(b)) / 2 for a, b in itertools.product(good, bad))
    assert f.longer is not None
    assert math.isclose(f.longer.share, wins / 6)
    assert f.longer.low < f.longer.share < f.longer.high
    assert f.length_ratio is None


def test_formatting() -> None:
    lists, plain = "Here:\n- one\n- two", "Here: one, two"
    f = facts(pair(lists, plain), pair(lists, plain), pair(plain, lists), pair(lists, "\n* c"))
    (only,) = f.formatting
    assert (only.trait, only.chosen.share, only.chosen.n) == ("list", 2 / 3, 3)
    f = facts(pair("# T\n**b**", "x"), pair("```\ny\n```", "x"), pair("a|b\n---|---", "x"))
    assert {found.trait: found.chosen.share for found in f.formatting} == dict.fromkeys(
        ("heading", "bold", "code", "table"), 1.0
    )
    assert facts(pair("a - b", "2.5 * 3 = 7")).formatting == ()


def test_formatting_of_binary_labels_is_held_against_their_balance() -> None:
    f = facts(rated("- a", True), rated("- b", True), rated("c", False), rated("d", True))
    (only,) = f.formatting
    assert (only.chosen.share, only.chosen.by_chance) == (1.0, 0.75)


def test_demonstrations_and_prompts_have_sizes_alone() -> None:
    f = facts({"prompt": "ab", "completion": "cde"}, {"prompt": "ab", "completion": "c"})
    assert (f.shape, f.n, f.n_prompts, f.mean_chars, f.max_chars) == ("demonstration", 2, 1, 4, 5)
    assert f.longer is None
    f = facts({"prompt": "ab"})
    assert (f.shape, f.mean_chars) == ("prompt", 2)


def test_one_label_alone_gives_no_comparison() -> None:
    f = facts(rated("a", True), rated("bb", True, "q"))
    assert f.desirable == 1
    assert f.longer is None
    assert f.length_correlation is None


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    held = [
        low <= 0.2 <= high
        for k in draw.binomial(50, 0.2, 500)
        for low, high in [wilson(k / 50, 50)]
    ]
    assert 0.92 < np.mean(held) < 0.98


def test_facts_survive_json() -> None:
    rows = [pair("- a b", "c", str(i)) for i in range(60)] + [pair("c", "- a b", "1")]
    f = facts(*rows)
    assert from_json(to_json(f), PreferenceFacts) == f
