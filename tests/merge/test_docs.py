"""The Python and the YAML of docs/merging.md are run."""

from __future__ import annotations

import re
from pathlib import Path

from worthit.merge import advice
from worthit.merge.methods import METHODS
from worthit.merge.read_recipe import parse

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "merging.md").read_text(encoding="utf-8")


def test_python() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/merging.md", "exec"), {})


def test_recipes() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    for block in blocks:
        recipe, problems = parse(block)
        assert problems == []
        assert recipe is not None
        assert recipe.warnings == ()


def test_every_method_and_its_parameters_are_told() -> None:
    table = PAGE.partition("## Methods")[2].partition("### Beside")[0]
    for method in METHODS.values():
        assert f"`{method.id}`" in table
        for parameter in method.parameters:
            assert re.search(rf"\b{parameter.name}\b", table), parameter.name


def test_thresholds_are_those_of_the_code() -> None:
    rules = PAGE.partition("## What is read")[2]
    for value in (
        advice.UNRELATED,
        advice.SEPARATE,
        advice.SAME,
        advice.DARE_SMALL,
        advice.DARE_LARGE,
        advice.DARE_DENSITY,
    ):
        assert f"{value:g}" in rules
    assert f"{100 * advice.CONFLICT:g} %" in rules
