"""What the experiments on preferences make by hand: pairs, bias, noise, judges and critics."""

from __future__ import annotations

import pytest

from worthit.lab.experiments._preferences import examples, ids, pairs_of, rated_of, wrong_forms
from worthit.lab.experiments.constitutional_ai import CONSTITUTION, Critic, preferred
from worthit.lab.experiments.rlaif import labelled
from worthit.lab.tasks.grammar_tutor import END, check, decode


def test_pairs_hold_a_right_and_a_wrong_form() -> None:
    pairs = pairs_of("held-out", 0, n_each=2)
    assert len(pairs) > len(examples("held-out"))
    for pair in pairs:
        prompt = decode(pair.prompt)
        assert check(prompt, decode(pair.chosen))
        assert not check(prompt, decode(pair.rejected))
        assert pair.chosen[-1] == pair.rejected[-1] == END


def test_splits_share_no_question() -> None:
    assert {e.prompt for e in examples("train")}.isdisjoint(
        {e.prompt for e in examples("held-out")}
    )


@pytest.mark.parametrize("longer", [True, False])
def test_bias_of_length_is_in_every_pair(longer: bool) -> None:
    pairs = pairs_of("train", 0, longer=longer)
    assert pairs
    assert all((len(p.chosen) > len(p.rejected)) == longer for p in pairs)
    assert all(len(p.chosen) != len(p.rejected) for p in pairs)


def test_noise_and_imbalance_are_as_much_as_asked_for() -> None:
    plain, noisy = pairs_of("train", 0), pairs_of("train", 0, flipped=0.3)
    flipped = sum(not check(decode(p.prompt), decode(p.chosen)) for p in noisy) / len(noisy)
    assert flipped == pytest.approx(0.3, abs=0.06)
    rated = rated_of(plain, good=0.1)
    assert sum(r.is_good for r in rated) == pytest.approx(0.1 * len(plain), abs=20)
    assert sum(not r.is_good for r in rated) == len(plain)


def test_wrong_forms_are_of_the_same_verb() -> None:
    example = examples("train")[0]
    assert example.answer not in wrong_forms(example)
    assert set(wrong_forms(example)) <= set(example.verb.forms[example.language].values())


def test_the_planted_judge_is_as_right_as_planted_in_both_orders_alone() -> None:
    pairs = pairs_of("train", 0, n_each=2)

    def right(q: float, *, has_both: bool) -> float:
        found = labelled(pairs, q, has_both=has_both, seed=0)
        return sum(a == b for a, b in zip(pairs, found, strict=True)) / len(pairs)

    assert right(1.0, has_both=True) == 1.0
    assert right(0.9, has_both=True) == pytest.approx(0.9, abs=0.03)
    assert right(0.6, has_both=True) == pytest.approx(0.6, abs=0.04)
    # The place at the front outweighs the opinion: an order alone says where an answer stood.
    assert right(1.0, has_both=False) == pytest.approx(0.5, abs=0.04)


def test_the_critic_revises_what_it_finds_wrong() -> None:
    asked = [e.prompt for e in examples("train")]
    critic = Critic(None, 0)  # type: ignore[arg-type]  # it is not asked to answer
    wrong = [wrong_forms(e)[0] for e in examples("train")]
    talks = [
        [
            {"role": "user", "content": p},
            {"role": "assistant", "content": w},
            {"role": "user", "content": "?"},
        ]
        for p, w in zip(asked, wrong, strict=True)
    ]
    verdicts = critic.reply(talks, max_tokens=1, seed=0)
    assert verdicts.count("no") / len(asked) == pytest.approx(0.9, abs=0.05)
    for talk, verdict in zip(talks, verdicts, strict=True):
        talk += [{"role": "assistant", "content": verdict}, {"role": "user", "content": "?"}]
    revised = critic.reply(talks, max_tokens=1, seed=0)
    right = sum(check(p, r) for p, r in zip(asked, revised, strict=True)) / len(asked)
    assert right == verdicts.count("no") / len(asked)
    assert CONSTITUTION.count(":") == 3


def test_only_pairs_with_one_right_answer_are_preferred() -> None:
    some = examples("train")[:50]
    prompts, right = [e.prompt for e in some], [e.answer for e in some]
    wrong = [wrong_forms(e)[0] for e in some]
    assert preferred(prompts, right, right, 0) == []
    pairs = preferred(prompts, wrong, right, 0)
    assert len(pairs) == len(some)
    better = sum(p.chosen == ids(a, is_answer=True) for p, a in zip(pairs, right, strict=True))
    assert 0.75 < better / len(pairs) <= 1
