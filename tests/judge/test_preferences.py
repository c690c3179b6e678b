"""The decision tree over facts of preferences, and what it makes of the verdicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from worthit.judge.judge import Judgement, judge_case
from worthit.judge.preferences import LEAST_TWICE, NOISY, OUTLINE, PreferenceAdvice, advise
from worthit.spec.case import Data
from worthit.spec.load import load_case
from worthit.spec.preference_facts import (
    ModelMargin,
    PreferenceFacts,
    Share,
    TraitShare,
)
from worthit.techniques import catalogue


def share(value: float, n: int = 1000, by_chance: float = 0.5) -> Share:
    return Share(
        share=value,
        low=max(value - 0.03, 0.0),
        high=min(value + 0.03, 1.0),
        n=n,
        by_chance=by_chance,
    )


PAIRS = PreferenceFacts(
    shape="pair", n=5000, noise=share(0.02, by_chance=0.0), longer=share(0.5), mean_chars=400.0
)
BINARY = PreferenceFacts(shape="binary", n=5000, desirable=0.5, mean_chars=400.0)


def advice(facts: PreferenceFacts, **more: Any) -> PreferenceAdvice:
    found = advise(Data(preferences=facts, **more))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("facts", "more", "methods"),
    [
        (PAIRS, {}, ("dpo", "simpo")),
        (replace(PAIRS, longer=share(0.75)), {}, ("simpo", "dpo")),
        (replace(PAIRS, longer=share(0.25)), {}, ("dpo", "simpo")),
        (replace(PAIRS, noise=share(0.2)), {}, ("ipo", "dpo")),
        (PAIRS, {"label_noise": 0.3}, ("ipo", "dpo")),
        (replace(PAIRS, noise=share(0.3)), {"label_noise": 0.05}, ("dpo", "simpo")),
        (replace(PAIRS, noise=None, noise_at_most=0.05), {}, ("dpo", "simpo")),
        (replace(PAIRS, noise=share(0.3), noise_at_most=0.05), {}, ("dpo", "simpo")),
        (replace(PAIRS, noise=None, noise_at_most=0.45), {}, ("dpo", "simpo")),
        (BINARY, {}, ("kto",)),
        (replace(BINARY, desirable=1.0), {}, ()),
        (replace(BINARY, desirable=0.0), {}, ()),
        (PreferenceFacts(shape="demonstration", n=10), {}, ("spin",)),
        (PreferenceFacts(shape="prompt", n=10), {}, ("rlaif",)),
        (PAIRS, {"is_safety_critical": True}, ("constitutional-ai",)),
    ],
)
def test_every_leaf(facts: PreferenceFacts, more: dict[str, Any], methods: Any) -> None:
    assert advice(facts, **more).methods == methods


def test_no_preferences_no_tree() -> None:
    assert advise(Data(checkpoints=2)) is None


def test_a_few_repeats_do_not_settle_the_noise() -> None:
    few = replace(PAIRS, noise=share(0.4, n=LEAST_TWICE - 1))
    found = advice(few)
    assert found.steps[1].answer == "unknown"
    assert f"only {LEAST_TWICE - 1} comparisons were judged twice" in found.steps[1].because
    assert found.settings == {"dpo": "label_smoothing 0.1"}
    assert "have" in " ".join(OUTLINE)


def test_numbers_are_the_reasons() -> None:
    found = advice(replace(PAIRS, noise=share(0.2, n=50)))
    assert [s.answer for s in found.steps] == ["yes", "yes"]
    assert found.steps[0].because == "5000 pairs"
    assert found.steps[1].because == "20 % [17 %, 23 %], by 50 comparisons judged more than once"
    assert found.settings["dpo"] == "loss robust, label_smoothing 0.2"


@pytest.mark.parametrize(
    ("desirable", "weights"),
    [
        # n_good w_good over n_bad w_bad from 1 to 4/3, the larger class left at weight 1.
        (0.1, "desirable_weight 9 to 12"),
        (0.9, "undesirable_weight 6.75 to 9"),
        (0.5, "undesirable_weight 0.75 to 1"),
    ],
)
def test_weights_of_kto(desirable: float, weights: str) -> None:
    assert advice(replace(BINARY, desirable=desirable)).settings == {"kto": weights}


def test_what_is_wrong_with_the_data_is_said() -> None:
    facts = replace(
        PAIRS,
        n=200,
        duplicates=20,
        contradictions=3,
        longer=share(0.8),
        formatting=(
            TraitShare(trait="list", chosen=share(0.9)),
            TraitShare(trait="code", chosen=share(0.51)),
            TraitShare(trait="bold", chosen=share(0.1)),
        ),
        margin=ModelMargin(
            model="m", n=50, ranked=share(0.6), ranked_summed=None, margin=0.1, chosen=-2.0
        ),
    )
    said = "\n".join(advice(facts).cautions)
    assert "20 of 200 rows repeat an earlier one (10 %)" in said
    assert "3 comparisons have labels both ways" in said
    assert "200 pairs, below 300" in said
    assert "The better answer is the longer one in 80 % [77 %, 83 %]" in said
    assert "marks the good ones: with list, 90 %" in said
    assert "marks the bad ones: with bold, 10 %" in said
    assert "with code" not in said
    assert "the model ranks 60 %" in said
    assert advice(replace(PAIRS, n=5000)).cautions == ()


# --- in the judge --------------------------------------------------------------------------------


def judged(data: dict[str, Any], **more: Any) -> Judgement:
    case = load_case({"model": "smollm2-135m", "hardware": "h100", "data": data, **more})
    return judge_case(case, only=["alignment"])


def stated(**changes: Any) -> dict[str, Any]:
    return {"preferences": {"shape": "pair", "n": 5000, "mean_chars": 400.0, **changes}}


def test_verdicts_follow_the_tree() -> None:
    found = judged({**stated(), "label_noise": 0.0})
    by_id = {v.technique.id: v for v in found.verdicts}
    assert {t: v.decision for t, v in by_id.items() if v.is_applicable} == {
        "dpo": "apply",
        "simpo": "apply",
        "ipo": "defer",
        "orpo": "defer",
        "kto": "never",
        "constitutional-ai": "never",
    }
    assert not by_id["spin"].is_applicable
    assert "these are pairs (chosen and rejected)" in by_id["spin"].reason
    assert by_id["dpo"].evidence == "predicted"
    # One forward of the reference over one forward and two backward: 4 / 3.
    assert by_id["dpo"].predicted is not None
    assert by_id["dpo"].predicted.ratio == pytest.approx(4 / 3)
    assert by_id["dpo"].reason.endswith("It costs 33 % of training time over plain fine-tuning.")
    assert by_id["simpo"].predicted is not None
    assert by_id["simpo"].predicted.ratio == 1
    record = found.to_json()["preferences"]
    assert record["methods"] == ["dpo", "simpo"]
    assert [s["answer"] for s in record["steps"]] == ["yes", "no", "no"]


def test_a_step_that_is_not_accepted_is_deferred() -> None:
    found = judged({**stated(), "label_noise": 0.0}, max_adoption="calibrate")
    v = next(v for v in found.verdicts if v.technique.id == "dpo")
    assert v.decision == "defer"
    assert "the furthest step is 'calibrate'" in v.reason


def test_what_is_in_place_stays() -> None:
    found = judged({**stated(), "label_noise": 0.3}, runtime={"alignment": "simpo"})
    by_id = {v.technique.id: v for v in found.verdicts}
    assert by_id["simpo"].is_present
    assert "would stand in for simpo" in by_id["dpo"].reason


def test_the_workload_is_assumed_from_the_data() -> None:
    case = load_case({"model": "smollm2-135m", "hardware": "h100", "data": stated()})
    # 5000 pairs of two sequences of 400 characters, 4 to a token.
    assert case.workload.tokens == 10_000 * 100
    assert (case.stage, case.max_adoption) == ("deployed", "finetune")
    assert any("assumed fine-tuning on the preferences once" in w for w in case.warnings)
    served = load_case(
        {"model": "smollm2-135m", "hardware": "h100", "workload": "chat", "data": stated()}
    )
    for v in judge_case(served, only=["alignment"]).verdicts:
        assert not v.is_applicable
        if v.technique.id == "dpo":
            assert "dpo is a way to train, and this case serves" in v.reason


def test_without_preferences_every_record_says_what_it_needs() -> None:
    case = load_case({"model": "smollm2-135m", "hardware": "h100"})
    found = judge_case(case, only=["alignment"])
    assert found.preferences is None
    assert len(found.verdicts) == 8
    for v in found.verdicts:
        assert not v.is_applicable
        assert "worthit judge MODEL --data prefs.jsonl" in v.reason


def test_the_tree_names_records_alone() -> None:
    family = {t.id for t in catalogue().values() if t.family == "alignment"}
    for facts in (PAIRS, replace(PAIRS, noise=share(0.2)), BINARY):
        found = advice(facts)
        assert {*found.methods, *found.others, *found.reasons} <= family
    for name in family:
        assert name in " ".join(OUTLINE)
    assert 0 < NOISY < 0.5
