"""Tasks are found by walking their folder."""

from __future__ import annotations

import pytest

from worthit.errors import UnknownName
from worthit.lab.tasks import task, task_names


def test_names_are_those_of_files() -> None:
    assert "grammar-tutor" in task_names()
    assert list(task_names()) == sorted(task_names())
    assert task("grammar-tutor").name == task("grammar_tutor").name == "grammar-tutor"


@pytest.mark.parametrize("name", ["grammer-tutor", "_table", "scores", ""])
def test_unknown_tasks(name: str) -> None:
    with pytest.raises(UnknownName, match=f"unknown task '{name}'"):
        task(name)
