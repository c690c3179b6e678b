"""A run's folder: killed at any moment, continued by the same command, rebuilt into an index."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab.fake import FAKE

from worthit.errors import InputError, WorthitError
from worthit.lab.context import resolve
from worthit.lab.files import append_line, read_json, read_lines, write_json
from worthit.lab.measure import measure
from worthit.lab.runs import open_run
from worthit.scorecard.index import rebuild
from worthit.scorecard.results import newest, own

TESTS = Path(__file__).parents[1]
# Cells of this length, so that a kill falls into one of them.
CELL_S = 0.15
SLOW_RUN = f"""
import sys, time
sys.path.insert(0, {str(TESTS)!r})
from dataclasses import replace
from lab.fake import FAKE, run
from worthit.lab.experiment import Custom
from worthit.lab.measure import measure

def slow(context, arm, seed):
    time.sleep({CELL_S})
    return run(context, arm, seed)

outcome = measure(replace(FAKE, how=Custom(run=slow)), out=sys.argv[1])
print(outcome["effects"][0]["per_seed"])
"""


def start(out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def cells(out: Path) -> set[str]:
    return {str(file.relative_to(out)) for file in out.glob("fake/*/cells/*/*/result.json")}


def wait_for_cells(process: subprocess.Popen[str], out: Path, n: int) -> None:
    deadline = time.monotonic() + 60
    while len(cells(out)) < n:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_and_continued(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for_cells(process, tmp_path, 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = {name: (tmp_path / name).read_bytes() for name in cells(tmp_path)}
    assert 3 <= len(done) < 10
    assert not list(tmp_path.glob("fake/*/result.json"))
    said, heard = start(tmp_path).communicate(timeout=60)
    # What was done was not done again, and the numbers are those of a run that was left alone.
    assert {name: (tmp_path / name).read_bytes() for name in done} == done
    assert f"{10 - len(done)} of 10 cells to do" in heard
    whole = measure(FAKE, out=tmp_path / "other", is_quiet=True)
    assert said.strip() == str(whole["effects"][0]["per_seed"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_continued(number: int, tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for_cells(process, tmp_path, 2)
    process.send_signal(number)
    _, heard = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in heard
    n_done = len(cells(tmp_path))
    assert 2 <= n_done < 10
    _, heard = start(tmp_path).communicate(timeout=60)
    assert f"{10 - n_done} of 10 cells to do" in heard


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    setting = resolve(FAKE, "quick")
    options = {"home": tmp_path, "seeds": [0], "n_threads": 1}
    with (
        open_run(setting, **options),  # type: ignore[arg-type]  # as named
        pytest.raises(InputError, match="another process is running"),
        open_run(setting, **options),  # type: ignore[arg-type]  # as named
    ):
        pass


def test_the_index_is_made_of_the_folders(tmp_path: Path) -> None:
    outcome = measure(FAKE, out=tmp_path, is_quiet=True)
    index = tmp_path / "index.json"
    before = own(tmp_path)
    assert [r["experiment"] for r in before] == ["fake"]
    index.unlink()
    assert own(tmp_path) == []
    assert rebuild(tmp_path) == (1, [])
    assert own(tmp_path) == before
    # Folders that say something else are passed over, and said so.
    summary = Path(outcome["folder"]) / "summary.json"
    summary.write_text(json.dumps(read_json(summary) | {"schema": "worthit.result/0"}))
    n, skipped = rebuild(tmp_path)
    assert n == 0
    assert "another version (worthit.result/0)" in skipped[0]
    summary.write_text("{")
    assert "damaged" in rebuild(tmp_path)[1][0]
    with pytest.raises(InputError, match="there are no runs"):
        rebuild(tmp_path / "nowhere")


def test_a_smoke_run_stands_below_any_other(tmp_path: Path) -> None:
    quick = measure(FAKE, out=tmp_path, is_quiet=True)
    measure(FAKE, budget="smoke", out=tmp_path, is_quiet=True)
    assert newest(home=tmp_path)["fake"]["key"] == quick["key"]


def test_a_log_survives_half_a_line(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    append_line(log, {"n": 1})
    with log.open("a") as file:
        file.write('{"n": 2, "cut o')
    append_line(log, {"n": 3})
    assert [line["n"] for line in read_lines(log)] == [1, 3]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(WorthitError, match="could not be written: permission denied"):
        write_json(tmp_path / "a.json", {})


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_json(tmp_path / "a.json", {"old": True})
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WorthitError, match="the disk is full; free some space, and the same"):
        write_json(tmp_path / "a.json", {"old": False})
    assert read_json(tmp_path / "a.json") == {"old": True}
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]
