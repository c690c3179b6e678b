"""`worthit context`: what it says, keeps and draws, and one clear message for what is wrong."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from decode.tiny import checkpoint

from worthit.cli.context import Work
from worthit.cli.main import run
from worthit.decode import longcontext as lc

SHORT = ["--lengths", "512,700", "--depths", "0.5", "--rows", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    checkpoint(folder, max_position_embeddings=600)
    return str(folder)


def test_arms_beside_one_another(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "context.html"
    line = ["context", model, "--rope", "none", "--rope", "yarn:2", *SHORT, "--html", str(page)]
    assert run([*line, "--json"]) == 0
    captured = capsys.readouterr()
    assert "2 x 1912 tokens: about" in captured.err
    record = json.loads(captured.out)
    assert record["schema"] == "worthit.context/1"
    assert list(record["arms"]) == ["none", "yarn:2"]
    assert [arm["context_len"] for arm in record["arms"].values()] == [600, 1200]
    for arm in record["arms"].values():
        assert [c["length"] for c in arm["needle"]] == [512, 700]
        assert [(b["start"], b["end"]) for b in arm["positions"]] == [
            (0, 256),
            (256, 512),
            (512, 699),
        ]
        assert arm["effective"]["needle"] == 0  # a random model finds nothing
    text = page.read_text(encoding="utf-8")
    for part in ("Nominal against effective", "Loss by position", "yarn:2", "1,200", "<svg"):
        assert part in text
    assert run(line) == 0
    out = capsys.readouterr().out
    figure = tmp_path / "loss.svg"
    assert run([*line[:-1], str(figure)]) == 0
    drawn = figure.read_text(encoding="utf-8")
    assert 'xmlns="http://www.w3.org/2000/svg"' in drawn
    assert "needles found" in drawn
    assert "loss, nats" in drawn
    tables = tmp_path / "context.md"
    assert run([*line[:-1], str(tables)]) == 0
    written = tables.read_text(encoding="utf-8").splitlines()
    assert written[0] == "| tokens | nominal | by needle | by loss |"
    assert written[3].startswith("| yarn:2 | 1,200 | 0 |")
    assert "| needles found | 512 | 700 |" in written
    assert "| as it is | 0 of 1 | 0 of 1 |" in written
    assert "| perplexity of tokens up to | 256 | 512 | 699 |" in written
    capsys.readouterr()
    assert "as it is: nominal 600 tokens" in out
    assert "rope yarn:2: nominal 1200 tokens" in out


def test_an_interrupted_run_goes_on(
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "runs.json"
    line = ["context", model, *SHORT, "--out", str(out), "--json"]
    original, calls = lc.retrieved, []

    def once(*args: Any, **kwargs: Any) -> Any:
        if calls:
            raise KeyboardInterrupt
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(lc, "retrieved", once)
    assert run(line) == 130
    assert len(json.loads(out.read_text())["arms"]["none"]["needle"]) == 1

    def other(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(lc, "retrieved", other)
    capsys.readouterr()
    assert run(line) == 0
    assert len(calls) == 2  # one before, one after
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads(out.read_text())
    # Everything is there: nothing is measured any more.
    assert run(line) == 0
    assert len(calls) == 2
    capsys.readouterr()
    assert run([*line, "--seed", "1"]) == 2
    assert "has another setup" in capsys.readouterr().err


def test_what_is_left_is_counted_by_tokens_and_corrected_by_what_was_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    setup = lc.Setup(lengths=(1000, 2000), depths=(0.5,), n_rows=1)
    arms: dict[str, Any] = {"none": {"needle": [{}]}}
    work = Work(lc.Pace(1e-3, 0.0), setup, arms, ("none", "yarn:2"))
    # 2,000 and a row of as many of the first arm, all 5,000 of the second.
    assert work.left_s() == pytest.approx(9.0)
    arms["none"] = {"needle": [{}, {}], "positions": [{"rows": [1.0]}]}
    now[0] = 8.0  # twice as long as foretold
    assert work.left_s() == pytest.approx(10.0)


BAD: dict[str, tuple[list[str], int, str]] = {
    "unknown model": (["smolm2-135m"], 2, "did you mean smollm2-135m"),
    "rope": (["MODEL", "--rope", "yran:2"], 2, "did you mean yarn?"),
    "lengths": (["MODEL", "--lengths", "1k,x"], 2, "--lengths: numbers between commas, got 'x'"),
    "short": (["MODEL", "--lengths", "100"], 2, "each must be at least 512"),
    "depths": (["MODEL", "--depths", "0.5,2"], 2, "depths: each must be from 0 to 1"),
    "keys": (["MODEL", "--keys", "0"], 2, "keys: must be from 1 to 8, got 0"),
    "page": (["MODEL", "--html", "none/x.html"], 2, "there is no folder none"),
    "out": (["MODEL", "--out", "none/x.json"], 2, "there is no folder"),
    "not a record": (["MODEL", "--out", "FILE"], 2, "is no record of this verb"),
}


@pytest.mark.parametrize(("line", "code", "says"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_one_message(
    line: list[str],
    code: int,
    says: str,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("few words")
    words = {"MODEL": model, "FILE": str(tmp_path / "file")}
    assert run(["context", *(words.get(w, w) for w in line)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.count("worthit: ") == 1


def test_a_model_whose_context_is_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path)
    assert run(["context", str(tmp_path)]) == 2
    assert "the shortest is 512, and the model's context is 64 tokens" in capsys.readouterr().err


def test_without_torch_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(["context", "anything"]) == 3
    assert "pip install 'worthit[torch]'" in capsys.readouterr().err
