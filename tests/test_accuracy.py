"""Predicted against published: every row of benchmarks/accuracy within its own tolerance."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _load() -> ModuleType:
    name = "worthit_accuracy"
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / "accuracy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


accuracy = _load()
ROWS = list(accuracy.rows())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_row_is_within_its_tolerance_or_says_why_not(row) -> None:
    off = abs(accuracy.error(row))
    if row.misses:
        assert off > row.tolerance, "it is within now: take `misses` out of the row"
    else:
        assert off <= row.tolerance, f"{accuracy.predict(row)} against {row.value}"


def test_rows_are_told_apart_and_sourced() -> None:
    ids = [row.id for row in ROWS]
    assert len(ids) == len(set(ids))
    assert {row.kind for row in ROWS} <= set(accuracy.KINDS)
    assert all(row.source and row.reason for row in ROWS)
    assert all(row.tolerance == 0 for row in ROWS if row.reason.startswith("a count"))
