"""Records of reasoning: their price in tokens, and who is told of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from technique_cases import llama_8b, serving, training

from worthit.cost.evaluate import evaluate
from worthit.errors import CaseError, NotApplicable
from worthit.judge.judge import Verdict, judge_case
from worthit.spec.case import AnswerCheck, Case, Data, Runtime, Serving
from worthit.spec.load import build_case, load_preset
from worthit.techniques import catalogue, technique

FAMILY = [t for t in catalogue().values() if t.family == "reasoning"]
family = pytest.mark.parametrize("t", FAMILY, ids=lambda t: t.id)


def checked(case: Case, check: AnswerCheck = "exact") -> Case:
    return replace(case, data=Data(answer_check=check))


def judged(case: Case) -> dict[str, Verdict]:
    found = judge_case(case, only=("reasoning",))
    return {v.technique.id: v for v in found.verdicts}


def s_per_token(case: Case) -> float:
    return float(evaluate(case).s_per_token[0, 0])


@family
def test_it_is_taken_away_as_it_came(t) -> None:
    case = checked(serving(llama_8b()))
    after = t.apply(case)
    assert t.is_present(after)
    assert t.remove is not None
    assert t.remove(after) == case
    with pytest.raises(NotApplicable, match=r"does so already \(runtime.reasoning\)"):
        t.apply(after)


@family
def test_without_a_stated_need_they_say_what_they_need(t) -> None:
    with pytest.raises(NotApplicable, match=r"say data\.answer_check"):
        t.apply(serving(llama_8b()))
    with pytest.raises(NotApplicable, match="acts when a model is served"):
        t.apply(checked(training()))


def test_votes_are_enough_for_some() -> None:
    case = checked(serving(llama_8b()), "short")
    technique("self-consistency").apply(case)
    technique("budget-forcing").apply(case)
    for name in ("best-of-n", "verifier-search"):
        with pytest.raises(NotApplicable, match=r"this case has answers short enough to vote on"):
            technique(name).apply(case)


@pytest.mark.parametrize("name", ["grammar-tutor", "llama-3.1-8b", "deepseek-v3"])
def test_a_case_that_states_nothing_hears_nothing_of_them(name: str) -> None:
    for v in judged(build_case(load_preset(name))).values():
        assert (v.decision, v.is_applicable) == ("never", False)


def test_samples_of_one_user_read_the_weights_together() -> None:
    # Nearly all of the time is reading weights: eight answers cost little more than one.
    one = checked(serving(llama_8b(), prompt=500, output=500, concurrency=1))
    v = judged(one)["best-of-n"]
    assert v.predicted is not None
    assert 1.0 < v.predicted.ratio < 1.3
    assert v.decision == "defer"
    assert "only an experiment can tell" in v.reason


def test_samples_of_a_full_server_cost_what_they_are() -> None:
    # Bound by arithmetic and cache: eight answers, eight times the work.
    full = checked(serving(llama_8b(), prompt=500, output=500, concurrency=64))
    runtime = replace(full.runtime, has_paging=True, has_continuous_batching=True)
    v = judged(replace(full, runtime=runtime))["best-of-n"]
    assert v.predicted is not None
    assert v.predicted.ratio > 2.5
    assert v.decision == "defer"
    assert "It costs" in v.reason


def test_eight_samples_are_eight_requests_with_one_prompt() -> None:
    # With a prompt of one token there is nothing to share: as eight requests, an eighth delivered.
    case = checked(serving(llama_8b(), prompt=1, output=400, concurrency=2))
    eight = technique("best-of-n").apply(case)
    assert isinstance(case.workload, Serving)
    sixteen = replace(case, workload=replace(case.workload, concurrency=16))
    assert s_per_token(eight) == pytest.approx(8 * s_per_token(sixteen), rel=0.02)
    # A long prompt is computed once for all eight.
    long = checked(serving(llama_8b(), prompt=20_000, output=1, concurrency=1))
    assert s_per_token(technique("best-of-n").apply(long)) < 1.1 * s_per_token(long)
    kept = evaluate(technique("best-of-n").apply(long)).cache_bytes_total[0]
    assert kept == pytest.approx(float(evaluate(long).cache_bytes_total[0]), rel=0.01)


def test_rounds_are_paid_one_after_another() -> None:
    case = checked(serving(llama_8b(), prompt=1, output=400, concurrency=1))
    twice = technique("budget-forcing").apply(case)
    assert s_per_token(twice) == pytest.approx(2 * s_per_token(case), rel=0.02)
    assert float(evaluate(twice).ttft_s[0, 0]) == float(evaluate(case).ttft_s[0, 0])


def test_a_verifier_of_steps_is_training() -> None:
    v = judged(checked(serving(llama_8b())))["verifier-search"]
    assert v.decision == "never"
    assert "takes finetuning" in v.reason
    exact = replace(checked(serving(llama_8b())), max_adoption="finetune")
    assert judged(exact)["verifier-search"].decision == "defer"


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(CaseError, match="samples must be at least 1, got 0"):
        Runtime(samples=0)
    with pytest.raises(CaseError, match=r"rounds must be at least 1, got 0\.5"):
        Runtime(rounds=0.5)


def test_a_case_file_can_say_it() -> None:
    from worthit.spec.load import load_case

    case = load_case(
        {
            "model": "gpt2",
            "hardware": "h100",
            "workload": {"prompt": 100, "output": 100},
            "data": {"answer_check": "exact"},
            "runtime": {"reasoning": "best-of-n", "samples": 4},
        }
    )
    assert technique("best-of-n").is_present(case)
    v = judged(case)["best-of-n"]
    assert (v.decision, v.is_present) == ("apply", True)
