"""The doctor: what it says of a healthy machine, and of each thing that can be wrong."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
from pathlib import Path

import pytest
from test_calibrate import run

from worthit import doctor as module
from worthit.doctor import calibration, doctor, gpu, hub_cache, lines
from worthit.spec.load import calibration_path


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_every_check_says_what_it_found() -> None:
    record = doctor()
    names = [check["name"] for check in record["checks"]]
    assert len(names) == len(set(names))
    assert {
        "python",
        "numpy",
        "extra torch",
        "cache folder",
        "calibration",
        "gpu",
        "hub cache",
    } <= {*names}
    for check in record["checks"]:
        assert set(check) == {"name", "status", "detail", "fix"}
        assert check["status"] in ("ok", "missing", "problem")
        assert check["detail"]
        # Whatever is wrong comes with what mends it.
        assert check["fix"] or check["status"] != "problem"
    assert len(lines(record)) >= len(names)


def test_a_missing_package_is_a_problem_and_an_extra_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_installed(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", none_installed)
    found = {check["name"]: check for check in doctor()["checks"]}
    assert found["numpy"]["status"] == "problem"
    assert found["numpy"]["fix"] == "pip install numpy"
    assert found["extra torch"]["status"] == "missing"
    assert found["extra torch"]["fix"] == "pip install 'worthit[torch]'"
    assert doctor()["status"] == "problem"


def test_the_listed_packages_are_those_of_the_project() -> None:
    import re
    import tomllib

    root = Path(__file__).resolve().parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]

    def bare(requirement: str) -> str:
        return re.split(r"[><=\[ ]", requirement)[0]

    assert {bare(r) for r in project["dependencies"]} == set(module.REQUIRED)
    for extra, (names, _) in module.EXTRAS.items():
        stated = {bare(r) for r in project["optional-dependencies"][extra]} - {"worthit"}
        assert stated <= set(names)


def test_calibration_is_missing_then_fresh_then_old() -> None:
    assert calibration()["status"] == "missing"
    assert calibration()["fix"] == "worthit calibrate"
    run()
    assert calibration()["status"] == "ok"
    assert "Made-up processor, 4 cores, today" in calibration()["detail"]
    old = time.time() - 200 * 86_400
    os.utime(calibration_path(), (old, old))
    assert calibration()["status"] == "missing"
    assert "200 days ago: out of date" in calibration()["detail"]


def test_a_damaged_calibration_is_a_problem() -> None:
    run()
    calibration_path().write_text("{")
    assert calibration()["status"] == "problem"
    assert calibration()["fix"] == "worthit calibrate"


def test_a_cache_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a-file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    found = module.cache_folder()
    assert found["status"] == "problem"
    assert "XDG_CACHE_HOME" in found["fix"]


def test_looking_creates_nothing(cache_home: Path) -> None:
    doctor()
    assert list(cache_home.iterdir()) == []


def test_gpu_without_a_driver_is_no_problem() -> None:
    assert gpu(lambda: "")["status"] == "missing"


def test_gpu_that_torch_cannot_use_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = gpu(lambda: "NVIDIA H100 80GB HBM3, 81559 MiB, 550.54")
    assert found["status"] == "problem"
    assert "NVIDIA H100" in found["detail"]
    assert "CUDA build" in found["fix"]


def test_hub_cache_is_found_by_its_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    assert hub_cache()["status"] == "missing"
    (tmp_path / "hub" / "models--a--b").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert hub_cache()["detail"].endswith("hub, 1 model")


def test_the_doctor_does_not_import_torch() -> None:
    import subprocess

    code = "import sys; sys.modules['torch'] = None; import worthit.doctor as d; d.doctor()"
    run_ = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run_.returncode == 0, run_.stderr
