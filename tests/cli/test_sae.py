"""`worthit sae`: trained, stopped and continued, measured, shown, steered by; one clear message."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from decode.tiny import checkpoint

from worthit.cli.main import run
from worthit.interp import shards
from worthit.interp.sae import session

AT = ["--at", "layers.0.resid_post"]
SHORT = ["--tokens", "2000", "--steps", "12", "--width", "64", "--k", "4", "--batch", "128"]
FP32 = ["--dtype", "fp32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    checkpoint(folder, max_position_embeddings=256)
    return str(folder)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on the mat and the dog sat on the log, said 12 of them. " * 120)
    return ["--text", str(path)]


@pytest.fixture(scope="module")
def folder(model: str, text: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sae") / "out"
    assert run(["sae", "train", model, str(out), *AT, *SHORT, *FP32, *text, "--json"]) == 0
    return out


def test_training_says_its_cost_and_leaves_a_folder(
    folder: Path, model: str, text: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((folder / "training.json").read_text())
    assert record["saes"]["topk"]["l0"] <= 4
    assert record["plan"]["steps"] == 12
    assert not (folder / "activations").exists()
    line = ["sae", "train", model, str(folder.parent / "other"), *AT, *SHORT, *FP32, *text]
    assert run([*line, "--plan"]) == 0
    said = capsys.readouterr().err
    assert re.search(
        r"[\d,]+ tokens captured \(.*on disk\), then 12 steps of 128 \(.*memory\)", said
    )
    assert not (folder.parent / "other").exists()


def test_evaluated(folder: Path, text: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = ["sae", "eval", str(folder), "--sequences", "4", *FP32, *text]
    assert run([*line, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["loss_ablated"] > 0
    assert record["delta"] == pytest.approx(record["loss_sae"] - record["loss"])
    assert run(line) == 0
    assert "of the variance with" in capsys.readouterr().out


def test_found_shown_and_drawn(
    folder: Path, text: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sae", "find", str(folder), "the cat sat on the mat", *FP32, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["features"]
    assert found
    page = tmp_path / "feature.html"
    line = ["sae", "show", str(folder), str(found[0]["feature"]), "--sequences", "4", *FP32, *text]
    assert run([*line, "--html", str(page), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    best = record["examples"][0]
    assert best["values"][best["at"]] == pytest.approx(best["value"])
    assert best["value"] == pytest.approx(record["largest"])
    assert sum(record["histogram"]) == record["n_on"]
    html = page.read_text()
    for word in ("Where it is on most", "logit lens", "<svg", "Reproduce"):
        assert word in html
    assert "http" not in html.replace("http-equiv", "")


def test_steered(folder: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["sae", "steer", model, str(folder), "3", "the cat", "--max-tokens", "8", "--raw", *FP32]
    assert run([*line, "--strength", "0", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["before"] == record["after"]
    assert run([*line, "--strength", "4", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["before"] != record["after"]


def test_the_same_command_continues(
    model: str, text: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after a checkpoint in the middle, the result is that of a run that was not."""
    line = [*AT, *SHORT, *FP32, *text, "--keep", "--json"]
    assert run(["sae", "train", model, str(tmp_path / "whole"), *line]) == 0
    monkeypatch.setattr(session, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    update, n = session.Training.update, 0

    def stop(self, rows):
        nonlocal n
        # The first few measure the speed.
        n += self.recipe.steps == 12
        if n == 7:
            raise KeyboardInterrupt
        return update(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(session.Training, "update", stop)
        assert run(["sae", "train", model, str(tmp_path / "cut"), *line]) == 130
    assert run(["sae", "train", model, str(tmp_path / "cut"), *line]) == 0
    whole, cut = (
        (tmp_path / name / "sae_weights.safetensors").read_bytes() for name in ("whole", "cut")
    )
    assert whole == cut


def test_a_time_is_kept_where_the_plan_was_wrong(
    model: str, text: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A million updates do not fit in three seconds: the training ends earlier, and whole."""
    line = [*AT, *SHORT, "--steps", "1000000", "--minutes", "0.05", *FP32, *text, "--json"]
    started = time.monotonic()
    assert run(["sae", "train", model, str(tmp_path / "out"), *line]) == 0
    assert time.monotonic() - started < 9
    out, said = capsys.readouterr()
    record = json.loads(out)
    assert 0 < record["saes"]["topk"]["steps"] < 1_000_000
    assert re.search(r"1,000,000 steps .* evaluation on \d+ sequences \(.*\): .* in all", said)


def test_a_slow_capture_leaves_time_to_train(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shard takes half of the time for everything: one is all that is captured."""
    long = tmp_path / "text.txt"
    long.write_text("the cat sat on the mat and the dog sat on the log, said 12 of them. " * 400)
    text = ["--text", str(long)]
    write, now = shards._write, [0.0]

    def slow(path, tensors):
        now[0] += 60.0
        write(path, tensors)

    monkeypatch.setattr(shards, "_write", slow)
    monkeypatch.setattr(session.time, "monotonic", lambda: now[0])
    line = [*AT, *SHORT, "--tokens", "4000", "--minutes", "2", *FP32, *text, "--keep", "--json"]
    assert run(["sae", "train", model, str(tmp_path / "out"), *line]) == 0
    written = list((tmp_path / "out" / "activations").glob("*.safetensors"))
    assert len(written) == 1
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["plan"]["n_shards"] == 1
    assert run(["sae", "train", model, str(tmp_path / "out"), *line]) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["sae", "show", "FOLDER", "64"], "FEATURE: must be between 0 and 63, got 64"),
        (
            ["sae", "eval", "FOLDER", "--at", "logits"],
            "has 320 channels, and the autoencoder reads",
        ),
        (
            ["sae", "train", "MODEL", "NEW", "--at", "layers.9.resid_post", "--minutes", "1"],
            "there is no layer 9, got a model of 2",
        ),
        (["sae", "train", "MODEL", "NEW", *AT], "give a time"),
        (["sae", "train", "MODEL", "FOLDER", *AT, *SHORT, "--seed", "5"], "run of other settings"),
        (["sae", "train", "MODEL", "NEW", *AT, "--k", "2.5", "--minutes", "1"], "a whole number"),
        (["sae", "steer", "MODEL", "MODEL", "1", "x"], "cannot be read: No such file"),
    ],
)
def test_what_is_wrong(
    line: list[str],
    message: str,
    folder: Path,
    model: str,
    text: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"FOLDER": str(folder), "MODEL": model, "NEW": str(tmp_path / "new")}
    line = [places.get(part, part) for part in line]
    extra = [] if line[1] == "steer" else text
    assert run([*line, *FP32, *extra]) == 2
    assert message in capsys.readouterr().err
