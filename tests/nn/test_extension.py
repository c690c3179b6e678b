"""A context stretched at load: logits of transformers with the same `rope_scaling`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from decode.tiny import checkpoint
from nn.quant.ggufs import llama_gguf
from nn.tolerances import assert_near

import worthit
from worthit.cli.main import run
from worthit.nn.quant.quantize import quantize

KNOWN, DIM = 64, 8
IDS = torch.randint(3, 300, (2, 150), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    checkpoint(folder)
    return folder


def scaled(kind: str, factor: float) -> dict[str, Any]:
    """What a config says of it; the base of `ntk` is known to no `rope_type`."""
    if kind == "ntk":
        base = 10_000.0 * factor ** (DIM / (DIM - 2))
        return {"rope_type": "default", "rope_theta": base}
    about = {"rope_type": kind, "factor": factor, "rope_theta": 10_000.0}
    return about | ({"original_max_position_embeddings": KNOWN} if kind == "yarn" else {})


@pytest.mark.parametrize("kind", ["yarn", "linear", "ntk", "dynamic"])
def test_logits_are_those_of_the_same_config(kind: str, folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    config.rope_parameters = scaled(kind, 4.0)
    if kind != "dynamic":  # which reads the trained context here
        config.max_position_embeddings = 4 * KNOWN
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, config=config).eval()
    model = worthit.load_model(folder, rope=f"{kind}:4")
    assert model.spec.context_len == 4 * KNOWN
    plain = worthit.load_model(folder)
    with torch.inference_mode():
        known = theirs(IDS, use_cache=False).logits
        assert_near(model(IDS), known)
        # Control: without it the logits are others.
        assert (plain(IDS) - known).abs().max() > 0.05 * known.abs().max()


def test_it_is_written_with_the_model(folder: Path, tmp_path: Path) -> None:
    model = worthit.load_model(folder, rope="yarn:4")
    worthit.save_model(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.inference_mode():
        assert_near(theirs(IDS).logits, model(IDS))
        assert_near(worthit.load_model(tmp_path)(IDS), model(IDS))


def test_with_files_of_every_kind(folder: Path, tmp_path: Path) -> None:
    path = llama_gguf(tmp_path / "model.gguf", "Q8_0")
    assert worthit.load_model(path, rope="ntk:2").spec.context_len == 512
    model = worthit.load_model(folder)
    quantize(model, "int8")
    worthit.save_model(model, tmp_path / "int8")
    loaded = worthit.load_model(tmp_path / "int8", rope="yarn:2@32")
    assert loaded.spec.context_len == 64
    assert loaded.quantization is not None


def test_generate_goes_beyond_the_trained_context(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["generate", str(folder), "12345 " * 30, "--raw", "--max-tokens", "3"]
    assert run(line) == 2
    assert "must fit the context of 64 tokens" in capsys.readouterr().err
    assert run([*line, "--rope", "yarn:4"]) == 0
    capsys.readouterr()
    assert run([*line, "--rope", "yarn"]) == 2
    assert "must be METHOD:FACTOR, such as yarn:4" in capsys.readouterr().err
