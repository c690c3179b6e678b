"""`worthit measure` on a fake experiment: what goes where, exit codes, and every bad input."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from lab.fake import FAKE

from worthit.cli.main import run
from worthit.lab.experiment import Custom, Experiment
from worthit.scorecard import results


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`fake` is an experiment, and its runs go here."""
    use(monkeypatch, FAKE)
    return tmp_path / "runs"


def use(monkeypatch: pytest.MonkeyPatch, experiment: Experiment) -> None:
    monkeypatch.setattr("worthit.scorecard.experiments.experiment_of", lambda name: name)
    monkeypatch.setattr("worthit.lab.measure.find", lambda name: experiment)


def test_it_says_its_cost_then_what_came_out(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["measure", "fake", "--out", str(runs), "--threads", "1"]) == 0
    said = capsys.readouterr()
    assert re.search(r"about \d+ s on 1 thread, 10 cells, 0 downloads; Ctrl-C is safe", said.err)
    for text in (
        "quick: time 1.96x faster [1.91, 2.01]",
        "CONFIRMED  quick, 5 seeds",
        "Half the time, the same loss. (Nobody 2024, Nothing, none)",
        "agrees         quick: time  predicted 0.5x [0.45, 0.55]",
        "worthit measure fake --budget quick",
    ):
        assert text in said.out


def test_json_is_the_outcome(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["measure", "fake", "--out", str(runs), "--json", "--seeds", "4"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["schema"] == "worthit.outcome/1"
    assert outcome["n_seeds"] == 4
    assert json.loads((Path(outcome["folder"]) / "result.json").read_text()) == outcome


def test_what_decides_nothing_is_exit_4(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["measure", "fake", "--out", str(runs), "--seeds", "1"]) == 4
    assert "INCONCLUSIVE" in capsys.readouterr().out


def test_ctrl_c_names_the_command_that_continues(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(FAKE.how, Custom)
    measure_cell = FAKE.how.run

    def stopped(context: object, arm: object, seed: int) -> object:
        if seed == 2:
            raise KeyboardInterrupt
        return measure_cell(context, arm, seed)  # type: ignore[arg-type]  # as it is called

    use(monkeypatch, replace(FAKE, how=Custom(run=stopped)))  # type: ignore[arg-type]  # as run
    line = ["measure", "fake", "--out", str(runs)]
    monkeypatch.setattr(sys, "argv", ["worthit", *line])
    assert run(line) == 130
    said = capsys.readouterr().err
    assert f"the same command continues: worthit measure fake --out {runs}" in said
    use(monkeypatch, FAKE)
    assert run(line) == 0
    assert "6 of 10 cells to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("measure topk-mo", "did you mean topk-moe"),
        ("measure topk-moe --budget fast", "'fast' is not one of"),
        ("measure topk-moe --seeds 0", "--seeds: must be at least 1, got 0"),
        ("measure topk-moe --threads 0", "--threads: must be at least 1"),
        ("measure topk-moe --html nowhere/x.html", "there is no folder nowhere"),
        ("measure", "Missing argument"),
    ],
)
def test_bad_input(line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert said.err.count("worthit: ") == 1


def test_without_torch_it_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["measure", "topk-moe"]) == 3
    assert "pip install 'worthit[lab]'" in capsys.readouterr().err


def test_record_writes_the_scorecard(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "HOME", tmp_path)
    assert run(["measure", "fake", "--out", str(runs), "--record"]) == 0
    assert json.loads((tmp_path / "fake.json").read_text())["state"] == "confirmed"


class Outline(HTMLParser):
    """Ids, references to ids, and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.figures = self.tables = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if names.get("id"):
            self.ids.append(str(names["id"]))
        for key in ("href", "src"):
            if names.get(key):
                self.targets.append(str(names[key]))
        self.figures += tag == "figure"
        self.tables += tag == "table"


def test_the_page_is_one_offline_file(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = replace(FAKE, question="<script>alert(1)</script>?")
    use(monkeypatch, hostile)
    page = tmp_path / "o.html"
    assert run(["measure", "fake", "--out", str(runs), "--html", str(page)]) == 0
    text = page.read_text()
    outline = Outline()
    outline.feed(text)
    assert "<script>alert" not in text
    assert len(outline.ids) == len(set(outline.ids))
    assert all(t.startswith(("#", "data:")) for t in outline.targets)
    assert {t[1:] for t in outline.targets if t.startswith("#")} <= set(outline.ids)
    # Two effects, two metrics seed by seed, one curve; each with its table.
    assert outline.figures == 5
    assert outline.tables >= outline.figures
    for part in ("Half the time, the same loss.", "1.96x faster", "worthit measure fake", "scipy"):
        assert part in text
    again = tmp_path / "again.html"
    assert run(["measure", "fake", "--out", str(runs), "--html", str(again)]) == 0
    assert re.sub(r"\d{4}-\d\d-\d\dT[\d:+]+", "", again.read_text()) == re.sub(
        r"\d{4}-\d\d-\d\dT[\d:+]+", "", text
    )
