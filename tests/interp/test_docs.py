"""The Python of docs/interpretability.md is run, its points and kinds all there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from worthit.interp.points import OF_LAYER
from worthit.interp.sae.kinds import KINDS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "interpretability.md"


def test_python() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    known: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), known)


def test_every_point_and_kind_is_told() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in (*OF_LAYER, *KINDS):
        assert f"{name}`" in text, name
