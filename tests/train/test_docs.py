"""The Python of docs/training.md runs from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from worthit.train import read_metrics

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert capsys.readouterr().out.count("\n") == 2
    assert [line["step"] for line in read_metrics(tmp_path / "runs/tutor")] == [1, 10, 10, 20, 20]
