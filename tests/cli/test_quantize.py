"""`worthit quantize`: what it writes and says, and one clear message for what is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from decode.tiny import TEXT, checkpoint
from nn.quant.ggufs import llama_gguf

import worthit
from worthit.cli.main import run
from worthit.decode import quantize as work
from worthit.decode.corpus import sequences
from worthit.decode.perplexity import perplexity
from worthit.decode.tokenizer import load_tokenizer
from worthit.spec.resolve import resolve

SHORT = ["--sequences", "4", "--length", "32", "--eval-tokens", "64"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    checkpoint(folder)
    return str(folder)


def said(capsys: pytest.CaptureFixture[str], *line: str) -> dict[str, Any]:
    assert run(["quantize", *line, "--json"]) == 0, capsys.readouterr().err
    captured = capsys.readouterr()
    assert captured.err.startswith(("int", "fp8", "ternary"))  # the cost, before anything is done
    assert "to write" in captured.err
    record: dict[str, Any] = json.loads(captured.out)
    return record


@pytest.mark.parametrize(
    ("line", "weights", "method"),
    [
        (["--bits", "8"], "int8", "rtn"),
        ([], "int4-g32", "gptq"),
        (["--group", "32", "--method", "awq"], "int4-g32", "awq"),
        (["--bits", "fp8"], "fp8", "rtn"),
        (["--bits", "ternary", "--head", "keep"], "ternary", "rtn"),
    ],
)
def test_the_folder_is_a_model_of_the_same_words(
    line: list[str],
    weights: str,
    method: str,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    record = said(capsys, model, str(out), *SHORT, *line)
    assert record["schema"] == "worthit.quantize/1"
    assert record["quantization"]["weights"] == weights
    assert record["quantization"]["method"] == method
    loaded = worthit.load_model(out)
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"] == record["quantization"] == loaded.quantization
    # Perplexity is that of the folder, on the text that is named.
    ids = sequences(load_tokenizer(out), 2, 32, part="held-out")
    assert record["perplexity"]["after"] == pytest.approx(perplexity(loaded, ids).value, rel=1e-6)
    before = worthit.load_model(model, dtype="bf16")
    assert record["perplexity"]["before"] == pytest.approx(perplexity(before, ids).value, rel=1e-6)
    assert record["bytes_after"] < record["bytes_before"]
    on_disk = sum(f.stat().st_size for f in out.glob("*.safetensors"))
    assert record["bytes_after"] < on_disk < record["bytes_after"] + 10_000  # and a header
    assert record["estimate"]["seconds"] > 0
    assert resolve(str(out)).warnings == ()
    assert load_tokenizer(out).encode(TEXT[0]) == load_tokenizer(model).encode(TEXT[0])
    assert list(tmp_path.iterdir()) == [out]
    assert run(["generate", str(out), "the cat", "--max-tokens", "4"]) == 0


def test_it_says_size_and_perplexity(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quantize", model, str(tmp_path / "out"), "--bits", "8", *SHORT]) == 0
    captured = capsys.readouterr()
    assert "int8 by rtn: about 0 s" in captured.err
    assert "times smaller (predicted" in captured.out
    assert "%) on 62 tokens, standard library of Python" in captured.out
    assert run(["quantize", model, str(tmp_path / "b"), "--bits", "8", "--eval-tokens", "0"]) == 0
    assert "perplexity" not in capsys.readouterr().out


def test_a_gguf_is_quantized_with_its_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = llama_gguf(tmp_path / "model.gguf", "Q8_0")
    record = said(capsys, str(path), str(tmp_path / "out"), "--bits", "8", *SHORT)
    assert record["has_tokenizer"]
    theirs, ours = load_tokenizer(path), load_tokenizer(tmp_path / "out")
    for text in TEXT:
        assert ours.encode(text) == theirs.encode(text)
    assert set(ours.stop_ids) == set(theirs.stop_ids)
    assert ours.chat_template == theirs.chat_template


def test_calibration_may_be_a_file(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.txt"
    file.write_text("\n".join(TEXT * 5), encoding="utf-8")
    record = said(capsys, model, str(tmp_path / "out"), "--calibration", str(file), *SHORT)
    assert record["quantization"]["calibration"]["text"] == "own.txt"
    assert record["quantization"]["calibration"]["sequences"] == 4


def test_a_folder_without_a_tokenizer_needs_no_text(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    checkpoint(bare)
    (bare / "tokenizer.json").unlink()
    line = [str(bare), str(tmp_path / "out"), "--bits", "8"]
    assert run(["quantize", *line]) == 2
    assert "holds no tokenizer.json" in capsys.readouterr().err
    assert run(["quantize", *line, "--eval-tokens", "0"]) == 0
    assert "MODEL has no tokenizer.json" in capsys.readouterr().out


BAD: dict[str, tuple[list[str], int, str]] = {
    "unknown model": (["smolm2-135m", "OUT"], 2, "did you mean smollm2-135m"),
    "no weights": (["llama-3.1-8b", "OUT"], 2, "describes a model and holds no weights"),
    "out is there": (["MODEL", "FULL"], 2, "is there already; give a folder that is not"),
    "out is a file": (["MODEL", "FILE"], 2, "is there already"),
    "out's folder": (["MODEL", "OUT/deep/er"], 2, "is not there; make it first"),
    "groups of 8 bits": (["MODEL", "OUT", "--bits", "8", "--group", "64"], 2, "pick one of 32"),
    "groups of fp8": (["MODEL", "OUT", "--bits", "fp8", "--group", "64"], 2, "leave it out"),
    "bits": (["MODEL", "OUT", "--bits", "3"], 2, "'3' is not one of"),
    "ternary awq": (
        ["MODEL", "OUT", "--bits", "ternary", "--method", "awq"],
        2,
        "awq does not help three values; use rtn",
    ),
    "text for rtn": (
        ["MODEL", "OUT", "--bits", "8", "--calibration", "FILE"],
        2,
        "rtn reads no text; leave it out",
    ),
    "no such text": (["MODEL", "OUT", "--calibration", "none.txt"], 2, "No such file"),
    "short text": (["MODEL", "OUT", "--calibration", "FILE"], 2, "give a longer text"),
    "no sequences": (["MODEL", "OUT", "--sequences", "0"], 2, "sequences: must be at least 1"),
    "length": (["MODEL", "OUT", "--length", "1"], 2, "length: must be at least 2, got 1"),
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
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").write_text("few words")
    words = {
        "MODEL": model,
        "FULL": str(tmp_path / "full"),
        "FILE": str(tmp_path / "file"),
        "OUT": str(tmp_path / "out"),
    }
    there = sorted(tmp_path.iterdir())
    full = [words.get(w, w.replace("OUT/", f"{tmp_path}/out/")) for w in line]
    assert run(["quantize", *full]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.count("worthit: ") == 1
    assert "Traceback" not in captured.err
    assert sorted(tmp_path.iterdir()) == there


def test_a_quantized_model_is_widened_first(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, model, str(tmp_path / "a"), "--bits", "8", *SHORT)
    record = said(capsys, str(tmp_path / "a"), str(tmp_path / "b"), "--bits", "4", *SHORT)
    assert record["quantization"]["weights"] == "int4-g32"


def test_what_reads_back_otherwise_is_not_kept(
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = work.save_model

    def damaged(model: Any, folder: Path) -> None:
        model.layers[0].ffn.up.scales *= 2
        original(model, folder)
        model.layers[0].ffn.up.scales /= 2

    monkeypatch.setattr(work, "save_model", damaged)
    assert run(["quantize", model, str(tmp_path / "out"), "--bits", "8", *SHORT]) == 1
    assert "reads back as another model; nothing was kept" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_before_it_is_full(
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert run(["quantize", model, str(tmp_path / "out"), "--bits", "8", *SHORT]) == 1
    assert "got 1000 free" in capsys.readouterr().err


def test_without_torch_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(["quantize", "anything", "out"]) == 3
    assert "pip install 'worthit[torch]'" in capsys.readouterr().err
