"""The Python of docs/alignment.md is run, its constitution read, its methods all there."""

from __future__ import annotations

import re
from pathlib import Path

from worthit.align.constitution import parse_constitution
from worthit.align.job import METHODS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "alignment.md").read_text(encoding="utf-8")


def test_python() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/alignment.md", "exec"), {})


def test_constitution() -> None:
    (block,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert len(parse_constitution(block)) == 2


def test_every_method_is_told() -> None:
    table = PAGE.partition("## Which method")[2].partition("Each stands")[0]
    assert re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE) == sorted(
        METHODS, key=lambda m: table.index(f"| `{m}`")
    )
