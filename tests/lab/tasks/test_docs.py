"""The page of tasks names every task, and its table is that of the defaults."""

from __future__ import annotations

import re
from pathlib import Path

from worthit.lab.tasks import task, task_names

PAGE = (Path(__file__).parents[3] / "docs" / "tasks.md").read_text(encoding="utf-8")


def test_every_task_is_on_the_page() -> None:
    for name in task_names():
        assert f"`{name}`" in PAGE or f"## {name}\n" in PAGE, name


def test_the_table_of_probes_is_true() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|[^|]+\| ([\w +]+) \| (\d+) \|", PAGE, re.MULTILINE)
    assert len(rows) == 8
    for name, vocab, length in rows:
        data = task(name)
        assert data.seq_len == int(length)
        assert data.vocab_size == (97 + 2 if vocab == "p + 2" else int(vocab))
