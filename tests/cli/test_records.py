"""`--json` of every verb: JSON and nothing else on stdout, and the record of the Python call."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import worthit
from worthit.cli._terminal import finite
from worthit.cli.main import run
from worthit.report import records
from worthit.spec import build_case, load_preset
from worthit.techniques import technique

CASE = "llama-2-7b --on rtx-4090 --prompt 500 --output 200 --concurrency 1"
FLAGS: dict[str, Any] = {"on": "rtx-4090", "prompt": 500, "output": 200, "concurrency": 1}


def printed(line: str, capsys: pytest.CaptureFixture[str]) -> Any:
    assert run(line.split()) == 0
    return json.loads(capsys.readouterr().out)


def through_json(record: Any) -> Any:
    return json.loads(json.dumps(finite(record), allow_nan=False))


def test_judge_prints_the_record_of_the_call(capsys: pytest.CaptureFixture[str]) -> None:
    case = build_case(load_preset("llama-2-7b"), **FLAGS)
    expected = through_json(worthit.judge(case, only=["cache", "gqa"]))  # type: ignore[operator]
    assert printed(f"judge {CASE} --json --only cache,gqa", capsys) == expected
    assert {v["technique"] for v in expected["verdicts"]} >= {"gqa", "kv-quantization"}


def test_only_and_with_repeat_or_take_commas(capsys: pytest.CaptureFixture[str]) -> None:
    once = printed(f"judge {CASE} --json --only mqa,gqa --with kv-quantization", capsys)
    again = printed(f"judge {CASE} --json --only mqa --only gqa --with kv-quantization", capsys)
    assert once == again
    assert once["on_top_of"] == ["kv-quantization"]


def test_cost_prints_the_record_of_the_call(capsys: pytest.CaptureFixture[str]) -> None:
    case = build_case(load_preset("llama-2-7b"), **FLAGS)
    expected = through_json(worthit.cost(case))  # type: ignore[operator]
    assert printed(f"cost {CASE} --json", capsys) == expected


def test_explain_prints_the_technique_and_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    alone = printed("explain gqa --json", capsys)
    assert alone == through_json(records.explain(technique("gqa")))
    assert alone["judge"] is None
    judged = printed(f"explain gqa --json --for {CASE}", capsys)
    assert [v["technique"] for v in judged["judge"]["verdicts"]] == ["gqa"]


@pytest.mark.parametrize("kind", ["models", "devices", "techniques", "workloads"])
def test_list_prints_what_ships(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    entries = printed(f"list {kind} --json", capsys)
    assert entries == through_json(getattr(records, kind)())
    assert len({entry["id"] for entry in entries}) == len(entries) > 3


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = printed(f"completion {shell} --json", capsys)["script"]
    assert "_WORTHIT_COMPLETE" in script
    assert run(["completion", shell]) == 0
    assert capsys.readouterr().out.strip() == script.strip()


def test_notes_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["judge", "llama-2-7b", "--json", "--only", "gqa"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["warnings"]
    assert "assumed" in captured.err


def test_infinite_numbers_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    record = printed("judge llama-3.1-70b --on rtx-4090 --json --only precision", capsys)
    assert record["fit"]["fits"] is False
    assert "Infinity" not in json.dumps(record)


@pytest.mark.parametrize("value", ["4000", "4_000", "4,000", "4k", "4K", "4e3", "0.004M"])
def test_sizes_have_several_spellings(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = printed(f"judge grammar-tutor --prompt {value} --json --only gqa", capsys)
    assert record["case"]["workload"]["prompt"] == 4000


def test_version() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from worthit.cli.main import main; main()", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"worthit {worthit.__version__}\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("worthit ju", "judge"),
        ("worthit judge grammar-t", "grammar-tutor"),
        ("worthit judge grammar-tutor --on h20", "h200"),
        ("worthit explain kv-q", "kv-quantization"),
        ("worthit judge grammar-tutor --only mqa,kv-q", "mqa,kv-quantization"),
    ],
)
def test_the_shell_completes_names(line: str, expected: str) -> None:
    import click.shell_completion

    from worthit.cli._group import cli

    words = line.split()[1:]
    completer = click.shell_completion.BashComplete(cli, {}, "worthit", "_WORTHIT_COMPLETE")
    found = completer.get_completions(words[:-1], words[-1])
    assert expected in {item.value for item in found}


def test_a_shell_asks_for_completions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_WORTHIT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "worthit judge grammar-t")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert run([]) == 0
    assert capsys.readouterr().out.splitlines() == ["plain,grammar-tutor"]
