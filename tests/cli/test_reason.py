"""`worthit reason`: one question and many, and one clear message for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from decode.tiny import checkpoint

from worthit.cli.main import run

SHORT = ["--max-tokens", "6", "--dtype", "fp32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    checkpoint(folder, max_position_embeddings=600)
    return str(folder)


@pytest.mark.parametrize(
    "strategy", ["once", "best-of-n", "self-consistency", "beam", "tree", "revise"]
)
def test_one_question_by_every_strategy(
    model: str, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["reason", model, "What is 7 + 5?", "--strategy", strategy, "--n", "3", *SHORT]
    assert run([*line, "--json"]) == 0
    captured = capsys.readouterr()
    assert "answers of 6 tokens: at most about" in captured.err
    record = json.loads(captured.out)
    assert record["schema"] == "worthit.reason/1"
    assert record["check"] == "arithmetic"
    (answer,) = record["answers"]
    assert answer["is_right"] is False  # a random model
    assert 1 <= answer["n_said"] <= 40
    assert record["spent"]["n_said"] == answer["n_said"]
    assert run(line) == 0
    assert "wrong" in capsys.readouterr().out


def test_thinking_is_forced_to_a_length(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["reason", model, "What is 7 + 5?", "--strategy", "budget-forcing", "--n", "2", *SHORT]
    assert run([*line, "--end-of-thinking", r"\n", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["answers"][0]["n_said"] <= 6 * 2 + 6
    assert run(line) == 2
    assert "--end-of-thinking: must be one token of this model" in capsys.readouterr().err


def test_a_question_without_a_check_says_so(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reason", model, "Who are you?", "--n", "2", *SHORT]) == 0
    assert "not checked" in capsys.readouterr().out
    assert run(["reason", model, "Who are you?", "--check", "arithmetic", *SHORT]) == 2
    assert "needs one sum or product of whole numbers" in capsys.readouterr().err


def test_a_curve_of_a_task(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, figure = tmp_path / "curve.html", tmp_path / "curve.svg"
    line = ["reason", model, "--task", "arithmetic", "--curve", "--questions", "3", "--n", "4"]
    line += ["--revisions", "2", *SHORT]
    assert run([*line, "--html", str(page), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    by_strategy: dict[str, list[int]] = {}
    for p in record["points"]:
        by_strategy.setdefault(p["strategy"], []).append(p["setting"])
        assert 0 <= p["low"] <= p["accuracy"] <= p["high"] <= 1
    assert by_strategy == {
        "one greedy answer": [1],
        "best-of-n, exact check": [1, 2, 4],
        "best-of-n by probability": [1, 2, 4],
        "self-consistency": [1, 2, 4],
        "revision, the last": [1, 2],
        "revision, a vote": [1, 2],
    }
    assert len(record["questions"]) == 3
    assert [p["n_tokens"] for p in record["optimal"]] == sorted(
        p["n_tokens"] for p in record["optimal"]
    )
    text = page.read_text(encoding="utf-8")
    for part in ("Accuracy against tokens", "What to take at each budget", "<svg", "What is"):
        assert part in text
    assert run([*line, "--html", str(figure)]) == 0
    assert "Without a check take" in capsys.readouterr().out
    drawn = figure.read_text(encoding="utf-8")
    assert drawn.startswith("<svg")
    assert 'xmlns="http://www.w3.org/2000/svg"' in drawn


def test_a_task_by_one_strategy(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["reason", model, "--task", "arithmetic", "--questions", "2", "--n", "2", *SHORT]
    assert run(line) == 0
    assert "best-of-n: 0.0 % of 2 questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "Give PROMPT or --task, one of them."),
        (["hi", "--task", "arithmetic"], "Give PROMPT or --task, one of them."),
        (["hi", "--curve"], "--curve needs --task"),
        (["--task", "arithmetic", "--html", "x.html"], "--html draws a curve: add --curve"),
        (["hi", "--n", "0"], "--n: must be at least 1, got 0"),
        (["--task", "arithmetic", "--signs", "/"], "--signs: of +, -, *, got '/'"),
        (["hi", "--temperature", "-1"], "temperature: must be 0 or more"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(
    model: str, line: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["reason", model, *line]) == 2
    assert message in capsys.readouterr().err
