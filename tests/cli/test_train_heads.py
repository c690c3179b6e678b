"""`worthit train-heads`: what it says before and after, and heads that load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from decode.tiny import checkpoint

import worthit
from worthit.cli.main import run
from worthit.decode.speculative.heads import load_heads


def test_heads_are_made_and_told_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path / "model", max_position_embeddings=256)
    out = tmp_path / "heads"
    line = ["train-heads", str(tmp_path / "model"), str(out), "--kind", "medusa", "--heads", "2"]
    capsys.readouterr()
    assert run([*line, "--tokens", "1", "--draft-vocab", "64", "--json"]) == 0
    captured = capsys.readouterr()
    # The cost, before anything is done.
    assert captured.err.startswith(
        "medusa: 24576 tokens of the model's own text, 12 updates; about"
    )
    record = json.loads(captured.out)
    assert record["schema"] == "worthit.train-heads/1"
    assert record["trained"]["n_tokens"] == 24576
    assert len(record["trained"]["acceptance"]) == 2
    heads = load_heads(out, worthit.load_model(tmp_path / "model"))
    assert heads.config.n_heads == 2
    assert heads.config.draft_vocab == 64
    assert run([*line, "--tokens", "1"]) == 2
    assert "is there already" in capsys.readouterr().err
