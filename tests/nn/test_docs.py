"""The Python of docs/nn.md runs from top to bottom, and the folder it speaks of is read back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import worthit
from worthit.cli._group import cli

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "nn.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run() -> dict[str, Any]:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    blocks = [block for block in BLOCKS if not block.startswith("# doc: needs")]
    assert len(blocks) == len(BLOCKS) - 1
    for block in blocks:
        exec(compile(block, "docs/nn.md", "exec"), names)
    return names


def test_the_page_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = run()
    said = capsys.readouterr().out
    assert "gqa apply" in said
    assert re.search(r"^\[\d+(, \d+){4}\]$", said, re.MULTILINE)
    assert [layer.kind for layer in names["spec"].layers] == [
        "mamba2+ffn",
        "mamba2+moe",
        "mamba2+ffn",
        "attention+moe",
    ] * 2
    worthit.save_model(names["model"], tmp_path)
    back = worthit.load_model(tmp_path)
    assert back.spec.layers == names["spec"].layers
    with torch.no_grad():
        assert torch.equal(back(names["ids"]), names["model"](names["ids"]))
    result = CliRunner().invoke(cli, ["judge", str(tmp_path)])
    assert result.exit_code == 0, result.output


def test_lines_fit() -> None:
    assert max(len(line) for block in BLOCKS for line in block.splitlines()) <= 100
