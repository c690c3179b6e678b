"""`worthit align`: every method from files to a checkpoint, interrupted, and with bad input."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from decode import tiny

import worthit
from worthit.align import run as running
from worthit.align.job import METHODS, Job, prepare
from worthit.cli.align import METHODS as OFFERED
from worthit.cli.main import run

ASKED = ["the cat", "the dog", "the mat", "the log", "a cat", "a dog"]
FILES: dict[str, list[dict[str, Any]]] = {
    "pairs": [{"prompt": p, "chosen": " sat", "rejected": " on the"} for p in ASKED],
    "rated": [
        {"prompt": p, "completion": c, "label": c == " sat"} for p in ASKED for c in (" sat", " on")
    ],
    "shown": [{"prompt": p, "completion": " sat"} for p in ASKED],
    "prompts": [{"prompt": p} for p in ASKED],
}
SHORT = ["--batch", "4", "--steps", "3", "--lr", "1e-3", "--held-out", "0.34", "--max-tokens", "4"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    tiny.checkpoint(folder / "model", max_position_embeddings=256)
    for name, rows in FILES.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "constitution.txt").write_text("An answer must be short.\n", encoding="utf-8")
    return folder


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


def aligned(home: Path, capsys: pytest.CaptureFixture[str], *line: str) -> dict[str, Any]:
    capsys.readouterr()
    code = run(["align", str(home / "model"), *line, *SHORT, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "parameters learn" in captured.err  # the cost, before anything is done
    record: dict[str, Any] = json.loads(captured.out)
    return record


@pytest.mark.parametrize(
    ("method", "file", "more"),
    [
        ("dpo", "pairs", ["--kind", "robust", "--label-smoothing", "0.1"]),
        ("dpo", "pairs", ["--lora", "2", "--accumulate", "2"]),
        ("ipo", "pairs", []),
        ("simpo", "pairs", ["--gamma", "0.5"]),
        ("orpo", "pairs", ["--precision", "bf16"]),
        ("kto", "rated", ["--beta", "0.2"]),
        ("kto", "pairs", []),
        ("spin", "shown", ["--rounds", "2"]),
        ("grpo", "shown", ["--reward", "exact", "--group", "2", "--beta", "0.1"]),
        ("ppo", "shown", ["--reward", "exact"]),
    ],
)
def test_every_method_writes_a_model(
    method: str,
    file: str,
    more: list[str],
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = digest(home)
    out = tmp_path / "out"
    line = [str(home / f"{file}.jsonl"), str(out), "--method", method, *more]
    record = aligned(home, capsys, *line)
    assert record["method"] == method
    assert json.loads((out / "align.json").read_text())["settings"] == record["settings"]
    assert worthit.load_model(out).generate("the cat", max_tokens=2).text is not None
    assert digest(home) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_rewards_are_learned_and_then_learned_from(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward, out = tmp_path / "reward", tmp_path / "out"
    record = aligned(home, capsys, str(home / "pairs.jsonl"), str(reward), "--method", "reward")
    assert "accuracy" in record["scores"]
    line = [str(home / "prompts.jsonl"), str(out), "--method", "grpo", "--group", "2"]
    record = aligned(home, capsys, *line, "--reward", str(reward))
    assert len(record["answers"]) == 3


@pytest.mark.parametrize(
    ("method", "more"), [("rlaif", []), ("constitutional-ai", ["--constitution", "HOME"])]
)
def test_feedback_is_labelled_kept_and_learned_from(
    method: str,
    more: list[str],
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = [str(home / "constitution.txt") if word == "HOME" else word for word in more]
    line = [str(home / "prompts.jsonl"), str(tmp_path / "out"), "--method", method, *more]
    record = aligned(home, capsys, *line, "--certainty", "0.5", "--judge", str(home / "model"))
    assert 1 <= record["labels"]["pairs"] <= record["labels"]["n"] <= len(ASKED)
    if method == "constitutional-ai":
        assert record["principles"] == 1
        assert record["revised"] > 0


def test_the_same_command_goes_on(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def line(out: str) -> list[str]:
        return [
            "align",
            str(home / "model"),
            str(home / "pairs.jsonl"),
            str(tmp_path / out),
            *SHORT,
        ]

    assert run(line("whole")) == 0
    done = running.Work.finish

    def stopped(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running.Work, "finish", stopped)
    assert run(line("half")) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert not (tmp_path / "half").exists()
    monkeypatch.setattr(running.Work, "finish", done)
    assert run([*line("half"), "--beta", "0.7"]) == 2
    assert "settings: {} there, {'beta': 0.7} here" in capsys.readouterr().err
    assert run(line("half")) == 0
    assert "going on" in capsys.readouterr().err
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("whole", "half")]
    assert weights[0] == weights[1]
    assert run(line("half")) == 2
    assert "is there and not empty" in capsys.readouterr().err


def test_a_plan_trains_nothing(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = ["align", str(home / "model"), str(home / "pairs.jsonl"), str(out), "--plan", "--json"]
    assert run(line) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["settings"]["beta"] == 0.1
    assert record["seconds"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["rated", "--method", "dpo"], "dpo learns from pairs .* those are for --method kto"),
        (["pairs", "--method", "spin"], "spin learns from demonstrations"),
        (["pairs", "--dtype", "bf16"], "add --lora 8"),
        (["shown", "--method", "grpo"], "--reward: grpo needs to know"),
        (["prompts", "--method", "grpo", "--reward", "exact"], "give demonstrations, or a reward"),
        (["pairs", "--reward", "exact"], "dpo has no use for it"),
        (["pairs", "--gamma", "1"], "unknown setting of dpo 'gamma'"),
        (["pairs", "--beta", "-1"], "beta: must be positive"),
        (["prompts", "--method", "constitutional-ai"], "give a text file of principles"),
        (["pairs", "--max-length", "2"], "every example is longer than --max-length 2"),
        (["nothing"], "no such file"),
    ],
)
def test_bad_input_is_one_clear_message(
    line: list[str],
    message: str,
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, *options = line
    out = tmp_path / "out"
    code = run(["align", str(home / "model"), str(home / f"{file}.jsonl"), str(out), *options])
    said = capsys.readouterr().err
    assert code == 2, said
    assert re.search(message, " ".join(said.split())), said
    assert not list(tmp_path.iterdir())


def test_the_command_offers_what_there_is() -> None:
    assert set(OFFERED) == set(METHODS)


def test_the_estimate_counts_what_learns(home: Path) -> None:
    def job(**changed: Any) -> Any:
        return prepare(
            Job(source=str(home / "model"), data=home / "pairs.jsonl", out=home / "out", **changed)
        )

    whole, adapted = job(), job(lora=2)
    n = sum(p.numel() for p in whole.model.parameters())
    assert whole.estimate.memory_bytes == 4 * n + 12 * n
    assert adapted.estimate.n_learning < n / 2
