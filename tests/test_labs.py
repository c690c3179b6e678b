"""The laboratories of docs/labs run from top to bottom: what they state, they assert."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "labs"
PAGES = sorted(FOLDER.glob("[0-9]-*.md"))


def test_there_are_laboratories() -> None:
    assert PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_laboratory_runs(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert any("assert " in block for block in blocks)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_laboratory_ends_in_four_answers(page: Path) -> None:
    text = page.read_text(encoding="utf-8").partition("## The four answers")[2]
    for number, question in enumerate(
        ("What is its bottleneck?", "Do I have it?", "What would it cost me?", "Therefore"), start=1
    ):
        assert f"{number}. **{question}" in text
