"""What holds of every verdict, whatever the technique and the case."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from worthit.cost.evaluate import evaluate
from worthit.cost.points import neighbourhood
from worthit.errors import NotApplicable
from worthit.judge.judge import judge, judge_case
from worthit.judge.verdict import gain
from worthit.spec.case import Case, Runtime, Serving
from worthit.spec.load import build_case, load_preset
from worthit.techniques import catalogue, technique

few = settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def situations(draw: st.DrawFn) -> Case:
    """Models, devices and workloads that people have."""
    model = draw(
        st.sampled_from(
            ["grammar-tutor", "llama-2-7b", "llama-3.1-8b", "qwen3-30b-a3b", "mamba2-2.7b"]
        )
    )
    on = draw(st.sampled_from(["h100", "a100-80", "h100:8", "rtx-4090", "laptop-cpu"]))
    stage = draw(st.sampled_from(["design", "deployed"]))
    if draw(st.integers(0, 3)) == 0:
        seq = draw(st.sampled_from([512, 4096]))
        return build_case(
            load_preset(model),
            on=on,
            train_tokens=10**10,
            seq=seq,
            batch_tokens=seq * draw(st.sampled_from([8, 256])),
            stage=stage,
        )
    return build_case(
        load_preset(model),
        on=on,
        prompt=draw(st.integers(1, 20_000)),
        output=draw(st.integers(1, 2000)),
        concurrency=draw(st.integers(1, 128)),
        stage=stage,
    )


# The gain itself.


def test_an_exact_rewrite_gains_nothing_with_certainty() -> None:
    case = build_case(load_preset("llama-3.1-8b"), on="h100")
    points = neighbourhood(case)
    same = gain(evaluate(case, points).s_per_token, evaluate(case, points).s_per_token)
    for ratio in (same.ratio, same.low, same.high):
        np.testing.assert_array_equal(ratio, 1.0)


def test_a_technique_that_returns_the_case_is_never_worth_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any record, its `apply` replaced by the identity."""
    idle = replace(
        technique("gqa"), apply=lambda case: case, is_present=lambda case: False, remove=None
    )
    # `worthit.judge` is callable, and its `judge` is the function: the module goes by its path.
    monkeypatch.setattr(sys.modules["worthit.judge.judge"], "select", lambda only: (idle,))
    case = build_case(load_preset("llama-2-7b"), on="h100", concurrency=32, stage="design")
    (verdict,) = judge(case)["verdicts"]
    predicted = verdict["predicted"]
    assert predicted["low"] == predicted["ratio"] == predicted["high"] == 1
    assert verdict["verdict"] == "never"
    assert verdict["flips"] == []


# Every verdict of the catalogue.


@few
@given(situations())
def test_every_verdict_is_consistent(case: Case) -> None:
    before = copy.deepcopy(case)
    found = judge(case)
    assert case == before
    assert len(found["verdicts"]) == len(catalogue())
    for verdict in found["verdicts"]:
        about = (verdict["technique"], verdict["reason"])
        assert verdict["verdict"] in ("apply", "defer", "never"), about
        assert verdict["reason"].endswith("."), about
        if verdict["verdict"] == "never":
            assert verdict["flips"] == [], about
            assert verdict["flip"] is None, about
        p = verdict["predicted"]
        if p is not None:
            assert p["low"] <= p["ratio"] <= p["high"], about
        if verdict["share"] is not None:
            assert -1e-9 <= verdict["share"] <= 1 + 1e-9, about
        if verdict["status"] == "not applicable":
            assert verdict["verdict"] == "never", about
        for flip in verdict["flips"]:
            assert flip["becomes"] != verdict["verdict"] or verdict["verdict"] == "defer", about
            if flip["factor"] is not None and flip["axis"] not in ("stage", "max_adoption"):
                assert 1 / 8 - 1e-9 <= flip["factor"] <= 8 + 1e-9, about


@few
@given(situations(), st.data())
def test_never_means_never_within_range(case: Case, data: st.DataObject) -> None:
    """The case really changed, and judged on its own, does not say `apply`."""
    assume(isinstance(case.workload, Serving))
    assert isinstance(case.workload, Serving)
    base = judge_case(case)
    # A stated layout: one that is chosen anew for the changed case is another question.
    case = base.cost.case
    never = [
        v.technique.id
        for v in judge_case(case).verdicts
        if v.decision == "never" and v.is_applicable and v.predicted is not None
    ]
    assume(never)
    axis = data.draw(st.sampled_from(["prompt", "output", "concurrency"]))
    factor = data.draw(st.sampled_from([0.125, 0.25, 0.5, 2.0, 4.0, 8.0]))
    size = max(round(getattr(case.workload, axis) * factor), 1)
    work = replace(case.workload, **{axis: size})
    # Past its trained context a model is another model.
    assume(work.context <= max(case.model.context_len, case.workload.context))
    for v in judge_case(replace(case, workload=work), only=never).verdicts:
        if v.technique.id in never and v.is_applicable:
            assert v.decision != "apply", (v.technique.id, axis, size, v.reason)


@few
@given(situations(), st.sampled_from(["kv-quantization", "int8-weights", "flash-attention"]))
def test_what_is_in_place_is_judged_as_when_it_was_not(case: Case, name: str) -> None:
    """With or without: one ratio, read off either side."""
    t = technique(name)
    assume(not t.is_present(case))
    try:
        placed = t.apply(case)
    except NotApplicable:
        assume(False)
        return
    assume(t.remove is not None and t.remove(placed).model == case.model)
    case = replace(case, hardware=evaluate(case).case.hardware)
    placed = replace(placed, hardware=case.hardware)
    (absent,) = judge(case, only=[name])["verdicts"]
    (present,) = judge(placed, only=[name])["verdicts"]
    assert present["status"] == "in place"
    assert present["predicted"]["ratio"] == pytest.approx(absent["predicted"]["ratio"], rel=1e-9)


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_applied_twice(name: str) -> None:
    """Once applied it is in place; applying it again says so or changes neither bytes nor time."""
    t = technique(name)
    serve = build_case(load_preset("llama-2-7b"), on="h100:8", concurrency=16, stage="design")
    train = build_case(
        load_preset("llama-2-7b"), on="h100:8", train_tokens=10**9, seq=4096, batch_tokens=2**18
    )
    naive = replace(serve, runtime=Runtime(attention="naive"))
    mixture = build_case(load_preset("mixtral-8x7b"), on="h100:8", concurrency=16, stage="design")
    for case in (serve, train, naive, mixture):
        if t.is_present(case):
            continue
        try:
            once = t.apply(case)
        except NotApplicable:
            continue
        assert t.is_present(once), "applied, and not seen as being there"
        try:
            twice = t.apply(once)
        except NotApplicable:
            return
        a, b = evaluate(once), evaluate(twice)
        np.testing.assert_allclose(b.total_bytes, a.total_bytes)
        return
    pytest.skip("in place in, or not applicable to, each of these cases")


# On top of one another.


def test_on_top_of_judges_what_is_left() -> None:
    case = build_case(load_preset("llama-2-7b"), on="h100", prompt=3000, output=500, concurrency=16)
    with_cache = technique("kv-quantization").apply(case)
    with_both = technique("int8-weights").apply(with_cache)
    (verdict,) = judge(case, only=["int8-weights"], on_top_of=["kv-quantization"])["verdicts"]
    times = [float(evaluate(c).s_per_token[0, 0]) for c in (with_cache, with_both)]
    assert verdict["predicted"]["ratio"] == pytest.approx(times[1] / times[0], rel=1e-9)


def test_order_of_independent_techniques_does_not_matter() -> None:
    case = build_case(load_preset("llama-2-7b"), on="h100", prompt=3000, output=500, concurrency=16)

    def ratio(name: str, on: tuple[str, ...]) -> float:
        (verdict,) = judge(case, only=[name], on_top_of=on)["verdicts"]
        return float(verdict["predicted"]["ratio"])

    a, b = "kv-quantization", "int8-weights"
    assert ratio(a, ()) * ratio(b, (a,)) == pytest.approx(ratio(b, ()) * ratio(a, (b,)), rel=1e-9)
    # Each relieves what the other leaves a larger share of: together they gain more than one.
    assert ratio(a, ()) * ratio(b, (a,)) < min(ratio(a, ()), ratio(b, ()))
