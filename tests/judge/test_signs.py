"""Verdicts that measurements settled: benchmarks/accuracy/signs.toml, row by row."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from worthit.cost.evaluate import evaluate
from worthit.cost.serve import ServeCost
from worthit.judge.judge import judge
from worthit.spec.case import Case, Hardware, Layout, Runtime, Serving
from worthit.spec.load import build_case, load_device, load_preset

DATA = Path(__file__).resolve().parents[2] / "benchmarks" / "accuracy" / "signs.toml"
SIGNS: list[dict[str, Any]] = tomllib.loads(DATA.read_text(encoding="utf-8"))["sign"]


def case_of(stated: dict[str, Any]) -> Case:
    stated = dict(stated)
    layout, runtime = stated.pop("layout", None), stated.pop("runtime", None)
    changes = stated.pop("workload", {})
    case = build_case(
        load_preset(stated.pop("model")),
        layout=None if layout is None else Layout(**layout),
        runtime=None if runtime is None else Runtime(**runtime),
        **stated,
    )
    return replace(case, workload=replace(case.workload, **changes))


@cache
def verdict_of(id_: str) -> dict[str, Any]:
    (sign,) = [sign for sign in SIGNS if sign["id"] == id_]
    found = judge(case_of(sign["case"]), only=[sign["technique"]])["verdicts"]
    (verdict,) = found
    return verdict  # type: ignore[no-any-return]  # a record of plain JSON types


def is_as_settled(sign: dict[str, Any]) -> bool:
    got = verdict_of(sign["id"])["verdict"]
    wanted = sign["verdict"]
    return got != "apply" if wanted == "not apply" else got == wanted


@pytest.mark.parametrize("sign", SIGNS, ids=lambda sign: sign["id"])
def test_verdict_points_the_settled_way(sign: dict[str, Any]) -> None:
    verdict = verdict_of(sign["id"])
    assert is_as_settled(sign), verdict["reason"]
    if not sign.get("flips", True):
        assert verdict["flips"] == [], verdict["flips"]


@pytest.mark.parametrize(
    "sign", [sign for sign in SIGNS if "measured" in sign], ids=lambda sign: sign["id"]
)
def test_interval_contains_what_was_measured(
    sign: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    if "disagrees" in sign:
        request.applymarker(pytest.mark.xfail(reason=sign["disagrees"], strict=True))
    predicted = verdict_of(sign["id"])["predicted"]
    low, high = 1 / predicted["high"], 1 / predicted["low"]
    assert low <= sign["measured"] <= high, (low, high)


def test_every_sign_is_sourced_and_told_apart() -> None:
    ids = [sign["id"] for sign in SIGNS]
    assert len(ids) == len(set(ids))
    assert all(sign["source"] for sign in SIGNS)


def test_tensor_parallel_pays_in_latency_and_not_in_cost() -> None:
    """1 to 8 A100, 8B, one user: measured 2.94x on 8 times the devices, 0.37 each."""
    case = case_of(
        {"model": "llama-3.1-8b", "on": "a100-80:8", "prompt": 6, "output": 200, "concurrency": 1}
    )
    whole, split = (
        evaluate(replace(case, hardware=replace(case.hardware, layout=Layout(tensor=n))))
        for n in (1, 8)
    )
    assert isinstance(whole, ServeCost)
    assert isinstance(split, ServeCost)
    faster = float(whole.tpot_s[0, 0] / split.tpot_s[0, 0])
    assert faster > 2
    assert faster / 8 < 0.5


def test_experts_want_a_batch() -> None:
    """E128 k8 on H100: 49 us for one token, 420 to 432 for 16 to 64: less and less a token."""
    device = load_device("h100")
    found = {}
    for batch in (1, 16, 64, 1024):
        case = Case(
            model=load_preset("qwen3-30b-a3b"),
            workload=Serving(prompt=8, output=8, concurrency=batch),
            hardware=Hardware(device=device),
        )
        cost = evaluate(case)
        assert isinstance(cost, ServeCost)
        assert cost.fits[0]
        found[batch] = float(cost.step.mid[0])
    assert found[16] > 3 * found[1]
    assert found[64] < 1.7 * found[16]
    assert found[64] / 64 < found[1] / 3
    assert found[1024] < 2 * found[64]
