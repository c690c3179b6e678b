"""What the benchmarks share: ratios within rounds, and targets beside what was measured."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_ratios_are_within_rounds() -> None:
    # A machine that is twice as slow in the last round slows both sides there.
    found = loaded("comparison").summary([1.0, 1.0, 2.0], {"theirs": [3.0, 3.0, 6.0]})
    assert found["median_s"] == 1.0
    assert found["n"] == 3
    assert found["speedup_over"]["theirs"] == {"median": 3.0, "p20": 3.0, "p80": 3.0}


def test_sides_take_turns_and_the_first_round_is_not_counted() -> None:
    turns: list[str] = []

    def way(name: str) -> float:
        turns.append(name)
        return float(len(turns))

    found = loaded("comparison").interleaved(
        {"a": lambda: way("a"), "b": lambda: way("b")}, rounds=2
    )
    assert turns == ["a", "b"] * 3
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_targets_are_met_missed_or_not_measured() -> None:
    def ratio(median: float) -> dict[str, float]:
        return {"median": median, "p20": median - 0.1, "p80": median + 0.1}

    ours = {"speedup_over": {"theirs": ratio(1.9)}, "less_memory_than": {"theirs": ratio(3.0)}}
    records = {"x": {"cases": {"one": {"ours": ours}}}}
    targets = [
        ["x", "one", "ours", "theirs", 2.0],
        ["x", "one", "ours", "theirs", 2.0, "less_memory_than"],
        ["x", "two", "ours", "theirs", 2.0],
    ]
    assert list(loaded("standing").rows(targets, records))[2:] == [
        "| one | ours | theirs | 2.0 | 1.90, 1.80 to 2.00 | **missed** |",
        "| one, memory | ours | theirs | 2.0 | 3.00, 2.90 to 3.10 | met |",
        "| two | ours | theirs | 2.0 | not measured | |",
    ]


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*/targets.toml")), ids=str)
def test_every_target_is_one_of_a_benchmark_beside_it(path: Path) -> None:
    wanted = tomllib.loads(path.read_text(encoding="utf-8"))
    kinds = loaded("standing").KINDS
    for name, _, _, _, least, *kind in wanted["targets"]:
        assert (path.parent / f"bench_{name}.py").is_file(), name
        assert least > 0
        assert set(kind) <= set(kinds)
