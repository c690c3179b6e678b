"""`worthit steer`, `probe`, `patch`, `edit`: records of a tiny model, and words for mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from decode.tiny import checkpoint

import worthit
from worthit.cli.main import run
from worthit.interp.directions import load_direction

PAIRS = [{"positive": f"good {c}", "negative": f"bad {c}"} for c in "abcdefgh"]
LABELS = [{"text": f"{w} {c}", "label": w} for w in ("good", "bad") for c in "abcdefghijkl"]
PROMPTS = [{"clean": "good a", "corrupt": "good b", "right": "x", "wrong": "y"}]
FACTS = [{"prompt": "the {} is", "subject": "cat", "target": "z", "truth": "q"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    checkpoint(folder)
    return str(folder)


@pytest.fixture
def file(tmp_path: Path):
    def written(rows: list[Any], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return str(path)

    return written


def said(capsys, *line: str) -> dict[str, Any]:
    assert run([*line, "--json"]) == 0, capsys.readouterr().err
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def test_steer_shows_before_after_and_the_control(model, file, tmp_path, capsys) -> None:
    kept = tmp_path / "d.safetensors"
    line = ["steer", model, "the", "--pairs", file(PAIRS), "--raw", "--max-tokens", "4"]
    record = said(capsys, *line, "--layer", "0", "--strength", "3", "--save", str(kept))
    assert [t["arm"] for t in record["texts"]] == ["as it is", "steered", "random"]
    assert all(t["perplexity"] >= 1 for t in record["texts"] if t["ids"])
    direction = load_direction(kept)
    assert direction.point == record["direction"]["point"] == "layers.0.resid_post"
    assert direction.norm == pytest.approx(record["direction"]["norm"])
    again = ["steer", model, "the", "--direction", str(kept), "--raw", "--max-tokens", "4"]
    assert said(capsys, *again, "--strength", "3")["texts"] == record["texts"]
    out = tmp_path / "baked"
    baked = said(capsys, *again, "--ablate", "--bake", str(out))
    ids = baked["texts"][1]["ids"]
    plain = worthit.load_model(out, dtype="fp32").generate("the", max_tokens=4)
    assert plain.ids == ids
    assert run(again) == 0
    assert "as it is  (perplexity" in capsys.readouterr().out


def test_probe_of_labels_has_its_controls(model, file, capsys) -> None:
    record = said(capsys, "probe", model, file(LABELS))
    assert record["labels"] == ["bad", "good"]
    assert record["points"][0]["point"] == "embed"
    assert {"accuracy", "low", "high", "shuffled"} <= set(record["points"][0])
    assert run(["probe", model, file(LABELS), "--point", "embed"]) == 0
    assert "the most frequent label alone: 0.50" in capsys.readouterr().out


def test_patch_names_places(model, file, capsys) -> None:
    record = said(capsys, "patch", model, file(PROMPTS))
    pair = record["pairs"][0]
    assert len(pair["effects"]["layers.0.resid_pre"]) == len(pair["tokens"])
    assert pair["strongest"][0]["effect"] == pytest.approx(1, abs=1e-3)
    assert run(["patch", model, file(PROMPTS), "--estimate", "--point", "layers.*.heads"]) == 0
    assert "3 passes" in capsys.readouterr().out


@pytest.mark.slow
def test_edit_scores_each_fact_and_writes_a_model(model, file, tmp_path, capsys) -> None:
    out = tmp_path / "edited"
    record = said(capsys, "edit", model, file(FACTS), str(out), "--layer", "0", "--steps", "3")
    assert set(record["facts"][0]["after"]) >= {"text", "efficacy", "specificity"}
    assert worthit.load_model(out).spec.d_model > 0


@pytest.mark.parametrize(
    ("verb", "rows", "options", "code", "text"),
    [
        ("steer", PAIRS[:2], [], 2, "needs 4 pairs or more, got 2"),
        ("steer", [*PAIRS, {"positive": 1}], [], 2, "line 9"),
        ("steer", PAIRS, ["--layer", "99"], 2, "99"),
        ("steer", PAIRS, ["--bake", "x"], 2, "add --ablate"),
        ("probe", LABELS[:12], [], 2, "two labels or more"),
        ("patch", [{**PROMPTS[0], "clean": "good a b c"}], [], 2, "row 1: clean has"),
        (
            "edit",
            [{**FACTS[0], "prompt": "none"}],
            ["--layer", "0"],
            2,
            "line 1: prompt: must have",
        ),
    ],
)
def test_mistakes_are_one_clear_message(
    verb, rows, options, code, text, model, file, capsys
) -> None:
    path = file(rows)
    line = ["hi", "--raw", "--pairs", path] if verb == "steer" else [path]
    assert run([verb, model, *line, *options]) == code
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err


def test_sets_that_come_with_the_package_need_no_file(model, capsys, tmp_path, monkeypatch) -> None:
    record = said(capsys, "probe", model, "sums", "--point", "embed", "--position", "mean")
    assert record["labels"] == ["not truth", "truth"]
    assert record["n"] == 96
    # By groups: no sum is on both sides, and both sides are even.
    assert record["majority"] == 0.5
    line = ["steer", model, "the", "--pairs", "language", "--raw", "--max-tokens", "2"]
    assert said(capsys, *line)["direction"]["note"] == "24 pairs of language"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums").write_text(json.dumps(LABELS[0]) + "\n" + json.dumps(LABELS[-1]) + "\n")
    assert run(["probe", model, "sums"]) == 2  # a file of that name is what is meant
    assert "needs two rows" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pairs", "labels", "questions", "prompts", "facts"])
def test_every_set_reads_as_a_file_would(kind: str, tmp_path) -> None:
    from worthit.interp.texts import read_rows
    from worthit.lab.tasks.sets import rows, set_names

    for name in set_names(kind):
        found = rows(name, kind)
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in found))
        assert read_rows(path, kind) == found
