"""Records of merging: what cost can say of them, and when they stay silent."""

from __future__ import annotations

from dataclasses import replace

import pytest
from technique_cases import llama_8b, one_layer, serving, training

from worthit.errors import NotApplicable
from worthit.judge.judge import Judgement, Verdict, judge_case
from worthit.spec.case import Case, Data
from worthit.spec.load import build_case, load_preset
from worthit.techniques import catalogue, technique

FAMILY = [t for t in catalogue().values() if t.family == "merging"]
MERGES = [t for t in FAMILY if t.id != "passthrough"]
merges = pytest.mark.parametrize("t", MERGES, ids=lambda t: t.id)


def with_checkpoints(case: Case, n: int) -> Case:
    return replace(case, data=Data(checkpoints=n))


def judged(case: Case, *only: str) -> dict[str, Verdict]:
    found: Judgement = judge_case(case, only=only or ("merging",))
    return {v.technique.id: v for v in found.verdicts}


@merges
def test_a_merge_costs_the_arithmetic_of_a_third_of_a_token_a_checkpoint(t) -> None:
    case = with_checkpoints(training(tokens=10**9), 2)
    after = t.apply(case)
    # 2 FLOPs a parameter and checkpoint, where a token trained is 6.
    needed = after.runtime.tokens_to_target
    assert needed is not None
    assert needed.mid == needed.low == needed.high == pytest.approx(2 * 2 / 6 / 1e9)
    assert t.is_present(after)
    assert t.remove is not None
    assert t.remove(after) == case


@merges
def test_quality_is_left_to_evidence(t) -> None:
    case = with_checkpoints(training(one_layer(), tokens=10**6, seq=32, batch_tokens=2048), 2)
    v = judged(case, t.id)[t.id]
    assert v.decision == "defer"
    assert v.predicted is not None
    assert v.predicted.metric == "train_total_s"
    assert v.predicted.ratio == pytest.approx(2 * 2 / 6 / 1e6, rel=1e-3)
    assert v.reason == (
        "It saves nearly all training time; its purpose (separate skills) is not visible to cost: "
        "only an experiment can tell."
    )


def test_passthrough_is_paid_for_at_every_token() -> None:
    case = with_checkpoints(serving(llama_8b()), 1)
    t = technique("passthrough")
    after = t.apply(case)
    assert after.model.n_layers == 48
    assert after.model.layers[:24] == case.model.layers[:24]
    assert t.apply(case, share=0.625).model.n_layers == 40
    v = judged(case)["passthrough"]
    assert v.decision == "never"
    assert v.predicted is not None
    # Layers are 7.0 of the 8.0 G parameters, and half of them come on top.
    assert v.predicted.ratio == pytest.approx(1.44, abs=0.04)
    with pytest.raises(NotApplicable, match=r"choose a share above 0\.5"):
        t.apply(case, share=0.5)


def test_passthrough_hurts_training_by_a_number() -> None:
    case = with_checkpoints(training(one_layer(), tokens=10**6, seq=32, batch_tokens=2048), 1)
    v = judged(replace(case, stage="design"))
    assert v["passthrough"].decision == "never"
    assert "that price is above the threshold of 10 %" in v["passthrough"].reason


@pytest.mark.parametrize("t", FAMILY, ids=lambda t: t.id)
def test_without_checkpoints_they_say_what_they_need(t) -> None:
    with pytest.raises(NotApplicable) as caught:
        t.apply(training())
    assert "data.checkpoints" in str(caught.value)
    assert "worthit judge --merge recipe.yml" in str(caught.value)


@pytest.mark.parametrize("name", ["grammar-tutor", "llama-3.1-8b", "deepseek-v3", "jamba-v0.1"])
def test_a_case_that_has_none_hears_nothing_of_them(name: str) -> None:
    for v in judged(build_case(load_preset(name))).values():
        assert not v.is_applicable


def test_the_number_of_checkpoints_decides() -> None:
    two, three = (with_checkpoints(training(), n) for n in (2, 3))
    technique("slerp").apply(two)
    with pytest.raises(NotApplicable, match="slerp merges 2 checkpoints, and this case has 3"):
        technique("slerp").apply(three)
    technique("task-arithmetic").apply(with_checkpoints(training(), 1))
    with pytest.raises(NotApplicable, match=r"ties merges 2 or more checkpoints, and .* has 1"):
        technique("ties").apply(with_checkpoints(training(), 1))


def test_serving_is_sent_to_the_checkpoints() -> None:
    with pytest.raises(NotApplicable, match="stands in for training one model on every task"):
        technique("ties").apply(with_checkpoints(serving(), 2))


def test_what_is_merged_is_not_merged_again() -> None:
    case = technique("ties").apply(with_checkpoints(training(), 2))
    with pytest.raises(NotApplicable, match="linear would merge what ties has merged already"):
        technique("linear").apply(case)


def test_a_case_file_can_say_it() -> None:
    from worthit.spec.load import load_case

    case = load_case(
        {
            "model": "gpt2",
            "hardware": "h100:8",
            "workload": {"kind": "train", "tokens": 10**9, "seq": 1024, "batch_tokens": 2**20},
            "data": {"checkpoints": 2},
            "runtime": {"merge": "ties"},
        }
    )
    assert technique("ties").is_present(case)
    assert judged(case, "ties")["ties"].is_present
