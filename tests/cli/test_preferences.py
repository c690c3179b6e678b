"""`worthit judge MODEL --data`: the file's facts, the tree and the verdicts, on every face."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worthit.cli.main import run

JUDGE = ["judge", "smollm2-135m", "--on", "h100", "--only", "alignment"]


def write(folder: Path, n_flipped: int, name: str = "prefs.jsonl") -> Path:
    """Forty comparisons judged twice, of which `n_flipped` the wrong way round once."""
    rows = []
    for i in range(40):
        good, bad = f"It went {i}.", f"It goed {i}."
        for vote in range(2):
            chosen, rejected = (bad, good) if vote and i < n_flipped else (good, bad)
            rows.append({"prompt": f"Past of go, {i}?", "chosen": chosen, "rejected": rejected})
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_clean_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*JUDGE, "--data", str(write(tmp_path, 0))]) == 0
    out, err = capsys.readouterr()
    assert "80 pairs of 40 prompts" in out
    assert "are 10 % of labels wrong? no: 0.0 %" in out
    assert "dpo or simpo" in out
    assert "assumed fine-tuning on the preferences once" in err
    assert "--data" in err


def test_noisy_pairs_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, 20)
    before = path.read_bytes()
    assert run([*JUDGE, "--data", str(path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    facts = record["case"]["data"]["preferences"]
    # Half of the comparisons differ: as good as chance.
    assert facts["noise"]["share"] == 0.5
    assert (facts["n"], facts["contradictions"], facts["judged_twice"]) == (80, 20, 40)
    assert record["preferences"]["methods"] == ["ipo", "dpo"]
    verdicts = {v["technique"]: v["verdict"] for v in record["verdicts"]}
    assert verdicts["ipo"] == verdicts["dpo"] == "apply"
    assert verdicts["simpo"] == "never"
    assert path.read_bytes() == before
    # A printed case can be judged again, the file gone.
    path.unlink()
    again = tmp_path / "case.json"
    again.write_text(json.dumps(record["case"]))
    assert run(["judge", str(again), "--only", "alignment", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["preferences"] == record["preferences"]


def test_a_case_file_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 0)
    case = tmp_path / "case.toml"
    text = 'model = "smollm2-135m"\nhardware = "h100"\n[data]\npreferences = "prefs.jsonl"\n'
    case.write_text(text + "label_noise = 0.3\n")
    assert run(["judge", str(case), "--only", "alignment"]) == 0
    # Lines break where the folder's name makes them.
    assert "30 %, as the case says (data.label_noise)" in " ".join(capsys.readouterr().out.split())
    case.write_text(text + "label_nose = 0.3\nis_safety_critical = 1\n")
    (tmp_path / "prefs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n{')
    assert run(["judge", str(case)]) == 2
    err = capsys.readouterr().err
    assert "data.label_nose: not a known key; did you mean label_noise?" in err
    assert "data.is_safety_critical: must be true or false, got 1" in err
    assert "data.preferences: prefs.jsonl: line 1: chosen and rejected are the same answer" in err
    assert "data.preferences: prefs.jsonl: line 2: broken JSON" in err


def test_label_noise_beyond_half(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = tmp_path / "case.toml"
    case.write_text('model = "smollm2-135m"\n[data]\nlabel_noise = 0.7\n')
    assert run(["judge", str(case)]) == 2
    assert "data.label_noise: must be in [0, 0.5], got 0.7" in capsys.readouterr().err


def test_explain_shows_the_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "dpo"]) == 0
    out = capsys.readouterr().out
    assert "one label an answer? kto" in out
    assert run(["explain", "ipo", "--lang", "es"]) == 0
    assert "margen fijo" in capsys.readouterr().out
    path = str(write(tmp_path, 0))
    assert run(["explain", "dpo", "--for", "smollm2-135m", "--data", path]) == 0
    out = capsys.readouterr().out
    assert "are 10 % of labels wrong? no" in out
    assert "apply?" in out


@pytest.mark.parametrize(("lang", "heading"), [("en", "Preferences"), ("es", "Preferencias")])
def test_the_page_has_a_section(
    tmp_path: Path, lang: str, heading: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    path = write(tmp_path, 20, name="<b>.jsonl")
    assert run([*JUDGE, "--data", str(path), "--html", str(page), "--lang", lang]) == 0
    text = page.read_text(encoding="utf-8")
    assert f'<h2 id="preferences-h">{heading}</h2>' in text
    assert "<b>ipo / dpo</b>; dpo: loss robust, label_smoothing" in text
    assert "<b>.jsonl" not in text
