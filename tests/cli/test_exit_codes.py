"""Bad input of every kind: one clear message on stderr, no traceback, and the right exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worthit.cli.main import run
from worthit.errors import MeasurementInconclusive, MissingCapability, WorthitError

BAD_COMMANDS = {
    "unknown verb": ("jugde x", "unknown verb 'jugde'; did you mean judge?"),
    "no model": ("judge", "Missing argument"),
    "unknown option": ("judge grammar-tutor --promt 3", "--promt"),
    "unknown model": ("judge grammar-tutr", "did you mean grammar-tutor?"),
    "unknown device": ("judge grammar-tutor --on h10", "did you mean"),
    "no such count": ("judge grammar-tutor --on h100:none", "positive whole number"),
    "zero devices": ("judge grammar-tutor --on h100:0", "positive whole number"),
    "unknown technique": ("judge grammar-tutor --only qga", "gqa"),
    "unknown family": ("judge grammar-tutor --only decodin", "did you mean decoding"),
    "unknown with": ("judge grammar-tutor --with kv-quantisation", "did you mean kv-quantization"),
    "unknown workload": ("judge grammar-tutor --workload chatt", "did you mean chat?"),
    "unknown format": ("judge grammar-tutor --weights fp9", "unknown number format 'fp9'"),
    "unknown stage": ("judge grammar-tutor --stage later", "'later' is not one of"),
    "negative size": ("judge grammar-tutor --prompt -5", "prompt must be at least 1"),
    "not a size": ("judge grammar-tutor --prompt many", "'many' is not a whole number"),
    "half a token": ("judge grammar-tutor --prompt 2.5", "'2.5' is not a whole number"),
    "endless": ("judge grammar-tutor --prompt 1e999", "not a whole number"),
    "serve and train": ("judge grammar-tutor --prompt 5 --seq 8", "serves or trains"),
    "empty name": ("judge grammar-tutor --only gqa,", "empty name"),
    "missing case": ("judge nowhere.toml", "nowhere.toml: no such file"),
    "missing preferences": ("judge smollm2-135m --data nowhere.jsonl", "nowhere.jsonl: no such"),
    "strange preferences": ("judge smollm2-135m --data prefs.csv", "preferences are read from"),
    "preferences and a merge": ("judge --merge a.yml --data b.jsonl", "of the other flags"),
    "a margin of nothing": ("judge smollm2-135m --margin 8", "--margin runs the model on"),
    "preferences of no case": ("explain dpo --data b.jsonl", "--data describes a case"),
    "missing config": ("cost ./nowhere/config.json", "nowhere"),
    "unknown to explain": ("explain gaq", "gqa"),
    "flags without a case": ("explain gqa --prompt 5", "add --for"),
    "unknown list": ("list things", "'things' is not one of"),
    "unknown shell": ("completion tcsh", "'tcsh' is not one of"),
}


@pytest.mark.parametrize(("line", "says"), BAD_COMMANDS.values(), ids=BAD_COMMANDS)
def test_bad_input_is_one_message_and_exit_2(
    line: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.count("worthit: ") == 1
    assert "Traceback" not in captured.err


def test_several_problems_are_listed_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["judge", "grammar-tutor", "--prompt", "0", "--output", "-5", "--on", "h1000"]) == 2
    err = capsys.readouterr().err
    for said in ("3 problems", "prompt must be", "output must be", "unknown device"):
        assert said in err


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "max_position_embeddings": 128,
}


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in LLAMA.items() if name != key}


BAD_CONFIGS = {
    "broken JSON": ('{"model_type": "llama",', "config.json"),
    "missing field": (json.dumps(without("num_hidden_layers")), "num_hidden_layers"),
    "heads": (json.dumps(LLAMA | {"num_key_value_heads": 3}), "num_key_value_heads"),
    "unknown type": (json.dumps(LLAMA | {"model_type": "lama"}), "llama"),
    "zero layers": (json.dumps(LLAMA | {"num_hidden_layers": 0}), "num_hidden_layers"),
}


@pytest.mark.parametrize(("text", "says"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_configs_say_what_is_wrong(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(text)
    assert run(["judge", str(config)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err


def test_control_the_good_config_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA))
    assert run(["judge", str(config), "--only", "gqa"]) == 0
    assert "gqa" in capsys.readouterr().out


def test_a_folder_without_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["judge", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err


def test_a_case_file_lists_its_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = tmp_path / "case.toml"
    case.write_text('model = "grammar-tutor"\nhardwear = "h100"\ngoal = "speed"\n')
    assert run(["judge", str(case)]) == 2
    err = capsys.readouterr().err
    assert "hardwear" in err
    assert "did you mean hardware?" in err
    assert "speed" in err


@pytest.mark.parametrize("error", [WorthitError("a"), MissingCapability("a", "b")])
def test_each_error_has_its_exit_code(
    error: WorthitError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_judge(monkeypatch, error)
    assert run(["judge", "grammar-tutor"]) == error.exit_code
    assert capsys.readouterr().err.splitlines()[-1] == f"worthit: {error}"


def test_inconclusive_and_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    break_judge(monkeypatch, MeasurementInconclusive("too noisy"))
    assert run(["judge", "grammar-tutor"]) == 4
    break_judge(monkeypatch, KeyboardInterrupt())
    assert run(["judge", "grammar-tutor"]) == 130


def test_anything_else_says_that_it_is_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_judge(monkeypatch, ZeroDivisionError("division by zero"))
    monkeypatch.delenv("WORTHIT_DEBUG", raising=False)
    assert run(["judge", "grammar-tutor"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "bug" in last
    assert "ZeroDivisionError: division by zero" in last
    monkeypatch.setenv("WORTHIT_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run(["judge", "grammar-tutor"])


def break_judge(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("worthit.judge.judge.judge_case", broken)


def test_a_name_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = tmp_path / "case.json"
    name = "evil\x1b[2J\x07"
    case.write_text(json.dumps({"name": name, "model": {"preset": "grammar-tutor", "name": name}}))
    assert run(["judge", str(case), "--only", "gqa"]) == 0
    assert run(["cost", str(case)]) == 0
    assert run(["judge", name]) == 2
    captured = capsys.readouterr()
    assert "evil?[2J?" in captured.out
    assert "\x1b" not in captured.out + captured.err
