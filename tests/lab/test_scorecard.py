"""The scorecard and the judge's evidence: what is kept, what stands, what a verdict shows of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from lab.fake import FAKE

import worthit
from worthit.cli.main import run
from worthit.errors import InputError, UnknownName
from worthit.lab.measure import measure
from worthit.scorecard import results
from worthit.scorecard.experiments import experiment_of
from worthit.scorecard.table import scorecard
from worthit.techniques import catalogue

LOCAL = ("/home", "/root", "/work", "/tmp")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scorecard without results of others, and a folder of one's own runs."""
    monkeypatch.setattr(results, "HOME", tmp_path / "committed")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "committed").mkdir()
    return tmp_path / "data" / "worthit" / "runs"


def test_every_technique_has_a_row(home: Path) -> None:
    record = scorecard()
    assert [row["technique"] for row in record["rows"]] == list(catalogue())
    assert record["n_measured"] == 0
    assert {row["means"] for row in record["rows"]} == {"not measured yet"}


def test_own_runs_stand_beside_committed_ones(home: Path) -> None:
    experiment = replace(FAKE, id="topk-moe", technique="topk-moe")
    first = measure(experiment, out=home, is_quiet=True)
    results.save(first)
    mine = next(row for row in scorecard()["rows"] if row["technique"] == "topk-moe")
    assert mine["state"] == "confirmed"
    assert mine["measured"] == first["verdict"]
    assert mine["agreement"] == "1 of 1"
    assert mine["expected"]["statement"] == "Half the time, the same loss."
    assert mine["claimed"][0]["claim"].startswith("Mixtral")
    # As new as each other: one's own does not push out what is as good.
    assert mine["origin"] == "committed"
    file = results.HOME / "topk-moe.json"
    old = json.loads(file.read_text()) | {"date": "2020-01-01T00:00:00+00:00"}
    file.write_text(json.dumps(old))
    mine = next(row for row in scorecard()["rows"] if row["technique"] == "topk-moe")
    assert mine["origin"] == "yours"


def test_further_experiments_of_a_technique_stand_below_its_own(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = replace(FAKE, id="topk-moe", technique="topk-moe")
    further = replace(FAKE, id="topk-moe-elsewhere", technique="topk-moe")
    measure(further, out=home, is_quiet=True)
    mine = next(row for row in scorecard()["rows"] if row["technique"] == "topk-moe")
    assert (mine["experiment"], mine["others"]) == ("topk-moe-elsewhere", [])
    measure(own, out=home, is_quiet=True)
    record = scorecard()
    mine = next(row for row in record["rows"] if row["technique"] == "topk-moe")
    assert mine["experiment"] == "topk-moe"
    assert [other["experiment"] for other in mine["others"]] == ["topk-moe-elsewhere"]
    assert record["n_measured"] == 1
    page = tmp_path / "s.html"
    assert run(["scorecard", "--html", str(page)]) == 0
    assert "topk-moe by topk-moe-elsewhere  confirmed" in capsys.readouterr().out
    assert "<b>topk-moe</b>: topk-moe-elsewhere" in page.read_text()


def test_what_is_committed_names_no_folder(home: Path) -> None:
    results.save(measure(FAKE, out=home, is_quiet=True))
    text = (results.HOME / "fake.json").read_text()
    assert not any(place in text for place in LOCAL)
    assert "curves" not in text
    assert len(text) < 12_000


def test_committed_results_are_whole() -> None:
    for file in results.HOME.glob("*.json"):
        record = json.loads(file.read_text())
        assert record["schema"] == results.SCHEMA
        assert record["experiment"] == file.stem
        assert record["budget"] in ("quick", "full"), "a smoke run decides nothing"
        assert len(record["environment"]["git"]["commit"]) == 40
        assert experiment_of(record["experiment"]) == record["experiment"]
        assert not any(place in file.read_text() for place in LOCAL)
        if record["state"] == "refuted":
            assert record["means"], "say in a sentence why"


def test_judge_shows_what_was_measured_and_decides_as_before(home: Path) -> None:
    case = worthit.load_case({"model": {"preset": "grammar-tutor"}})
    before = worthit.judge(case, only=["topk-moe"])["verdicts"][0]  # type: ignore[operator]
    assert before["measured"] is None
    assert before["check_with"] == "worthit measure topk-moe"
    experiment = replace(FAKE, id="topk-moe", technique="topk-moe")
    outcome = measure(experiment, out=home, is_quiet=True)
    after = worthit.judge(case, only=["topk-moe"])["verdicts"][0]  # type: ignore[operator]
    assert after["measured"]["verdict"] == outcome["verdict"]
    assert after["measured"]["origin"] == "yours"
    assert after | {"measured": None} == before


def test_evidence_is_measured_only_of_this_model_on_this_hardware(home: Path) -> None:
    from worthit.judge.judge import judge_case

    case = worthit.load_case({"model": {"preset": "grammar-tutor"}})
    experiment = replace(FAKE, id="topk-moe", technique="topk-moe")
    outcome = measure(experiment, out=home, is_quiet=True)
    index = json.loads((home / "index.json").read_text())
    device = replace(case.hardware.device, name=outcome["environment"]["cpu"])
    here = replace(case, hardware=replace(case.hardware, device=device))

    def evidence(model: str | None) -> str:
        index["results"][0]["arms"]["plain"]["model"] = model
        (home / "index.json").write_text(json.dumps(index))
        return judge_case(here, only=["topk-moe"]).verdicts[0].evidence

    assert evidence("grammar-tutor") == "measured"
    assert evidence("another") == "predicted"


def test_names_of_experiments() -> None:
    assert experiment_of("topk-moe") == "topk-moe"
    with pytest.raises(UnknownName, match="did you mean topk-moe"):
        experiment_of("topk-mo")


def test_a_technique_without_an_experiment_says_so() -> None:
    lacking = [t.id for t in catalogue().values() if t.experiment is None]
    if not lacking:
        pytest.skip("every technique has one")
    with pytest.raises(InputError, match="has no experiment yet"):
        experiment_of(lacking[0])


def test_pages_and_tables(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    measure(replace(FAKE, id="topk-moe", technique="topk-moe"), out=home, is_quiet=True)
    page = tmp_path / "s.html"
    assert run(["scorecard", "--html", str(page)]) == 0
    said = capsys.readouterr()
    assert "topk-moe  confirmed" in said.out
    assert "1 of" in said.out
    assert "not measured yet: " in said.out
    assert "topk-moe" in page.read_text()
    assert run(["scorecard", "--rebuild", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["n_measured"] == 1
    assert "1 runs" in said.err
    assert run(["scorecard", "--rebuild", "--out", str(tmp_path / "nowhere")]) == 2
    assert run(["list", "experiments", "--json"]) == 0
    listed = {e["id"]: e for e in json.loads(capsys.readouterr().out)}
    assert listed["topk-moe"]["measured"] == "confirmed"
    assert listed["mla"]["title"].startswith("One latent")
