"""The Python of docs/precision.md runs from top to bottom and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from worthit.train.optim import OPTIMIZERS
from worthit.train.precision import PRECISIONS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "precision.md").read_text(encoding="utf-8")


def test_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/precision.md", "exec"), names)
    said = capsys.readouterr().out
    assert re.search(r"NarrowLinear\(.*mxfp8, simulated\)", said)
    assert "'matrix'" in said


def test_the_page_names_every_format_and_optimizer() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(PRECISIONS)
    assert all(f"`{name}`" in PAGE for name in OPTIMIZERS)
