"""What the README shows is what the commands print: each row of a table, and the Python example."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from worthit.cli._group import cli

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
ROW = re.compile(r"[△▲◆■] ")


def shown() -> list[tuple[str, list[str]]]:
    """Each command of a console block that is followed by table rows, with those rows."""
    found: list[tuple[str, list[str]]] = []
    for line in README.splitlines():
        if line.startswith("$ worthit "):
            found.append((line.removeprefix("$ worthit "), []))
        elif ROW.match(line) and found:
            found[-1][1].append(line)
    return [(command, rows) for command, rows in found if rows]


def test_there_are_commands_with_rows() -> None:
    assert len(shown()) == 2


@pytest.mark.parametrize(("command", "rows"), shown())
def test_rows_are_what_the_command_prints(command: str, rows: list[str]) -> None:
    result = CliRunner(env={"COLUMNS": "100"}).invoke(cli, shlex.split(command))
    assert result.exit_code == 0, result.output
    printed = [line.rstrip() for line in result.output.splitlines()]
    assert [row for row in rows if row not in printed] == []


def test_the_accuracy_is_that_of_its_page() -> None:
    page = (Path(__file__).parent.parent / "docs" / "accuracy.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| \[.*\]\(#.*$", page)
    assert len(rows) == 7
    assert [r for r in rows if r.replace("](#", "](docs/accuracy.md#") not in README] == []
    total = sum(int(row.split("|")[2]) for row in rows)
    assert f"\n{total} numbers that others" in README


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert "gqa apply Without it" in capsys.readouterr().out
