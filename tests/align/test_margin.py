"""The margin under a model: what a loop over tokens gives, and what the judge says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from decode import tiny

import worthit
from worthit.align.margin import margin_of
from worthit.cli.main import run
from worthit.decode.tokenizer import load_tokenizer
from worthit.errors import InputError
from worthit.spec.preferences import from_rows

ASKED = ["the cat", "the dog", "the mat", "the log", "a cat"]
PAIRS = [{"prompt": p, "chosen": " sat", "rejected": " on the mat"} for p in ASKED]
RATED = [
    {"prompt": p, "completion": c, "label": c == " sat"} for p in ASKED for c in (" sat", " on the")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    tiny.checkpoint(path)
    return path


def by_hand(folder: Path, prompt: str, answer: str) -> tuple[float, int]:
    """Token after token, each from a pass of its own; with how many there are."""
    model, tokenizer = worthit.load_model(folder), load_tokenizer(folder)
    ids = list(tokenizer.encode(prompt))
    said = [*tokenizer.encode(answer, has_special=False), tokenizer.stop_ids[0]]
    total = 0.0
    for token in said:
        with torch.no_grad():
            total += float(model(torch.tensor([ids]))[0, -1].log_softmax(-1)[token])
        ids.append(token)
    return total, len(said)


def test_pairs(folder: Path) -> None:
    found = margin_of(folder, from_rows(PAIRS), n=99)
    better = [by_hand(folder, p, " sat") for p in ASKED]
    worse = [by_hand(folder, p, " on the mat") for p in ASKED]
    margins = [b / n - w / m for (b, n), (w, m) in zip(better, worse, strict=True)]
    assert found.n == 5
    assert found.margin == pytest.approx(sum(margins) / 5, abs=1e-4)
    assert found.chosen == pytest.approx(sum(b / n for b, n in better) / 5, abs=1e-4)
    assert found.ranked is not None
    assert found.ranked.share == sum(m > 0 for m in margins) / 5
    assert found.ranked_summed is not None
    wins = [b > w for (b, _), (w, _) in zip(better, worse, strict=True)]
    assert found.ranked_summed.share == sum(wins) / 5


def test_rated(folder: Path) -> None:
    found = margin_of(folder, from_rows(RATED), n=99)
    means = [
        (b / n, row["label"])
        for row in RATED
        for b, n in [by_hand(folder, str(row["prompt"]), str(row["completion"]))]
    ]
    good, bad = ([m for m, label in means if label is want] for want in (True, False))
    assert found.ranked is not None
    assert found.ranked.share == pytest.approx(sum(g > b for g in good for b in bad) / 25)
    assert found.margin == pytest.approx(sum(good) / 5 - sum(bad) / 5, abs=1e-4)


def test_some_of_them_are_spread_over_the_set(folder: Path) -> None:
    assert margin_of(folder, from_rows(PAIRS), n=2).n == 2
    shown = [{"prompt": "the cat", "completion": " sat"}]
    found = margin_of(folder, from_rows(shown), n=4)
    assert (found.ranked, found.margin) == (None, None)


@pytest.mark.parametrize(
    ("rows", "n", "message"),
    [
        ([{"prompt": "a"}], 4, "prompts alone have no answers"),
        (PAIRS, 0, "must be at least 1 example, got 0"),
    ],
)
def test_what_cannot_be_ranked(folder: Path, rows: Any, n: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        margin_of(folder, from_rows(rows), n=n)


def test_the_judge_says_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prefs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    line = ["judge", str(folder), "--on", "h100", "--data", str(path), "--only", "alignment"]
    assert run([*line, "--margin", "4"]) == 0
    out = capsys.readouterr().out
    assert "ranked as labelled, a token" in out
    assert "Before any training the model ranks" in out
    assert run(["judge", "llama-3.1-8b", *line[2:], "--margin", "4"]) == 2
    assert "holds no weights" in capsys.readouterr().err
