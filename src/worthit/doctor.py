"""What is installed here, what is missing, and the command that gets it.

Each check is a dict: `name`, `status` (`ok`, `missing` where nothing is wrong but something is not
there, `problem` where something is), `detail`, and `fix`, the command or step that mends it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from worthit.errors import MissingCapability, WorthitError

Status = Literal["ok", "missing", "problem"]

OLDEST_PYTHON = (3, 11)
REQUIRED = ("click", "matplotlib", "numpy", "pydantic", "rich")
# Each extra's own packages, and what it adds.
EXTRAS = {
    "torch": (
        ("torch", "safetensors", "tokenizers", "gguf", "jinja2"),
        "calibrates with bf16, loads models and runs them",
    ),
    "trace": (("transformers", "torch"), "counts model types that are not read directly"),
    "gguf": (("gguf",), "reads .gguf files"),
}
# Drivers and libraries change: a calibration of a season ago describes another machine.
STALE_DAYS = 120


def doctor() -> dict[str, Any]:
    """Check this machine and return every check; `status` is the worst of them that matters."""
    checks = list(_checks())
    is_well = all(check["status"] != "problem" for check in checks)
    return {
        "schema": "worthit.doctor/1",
        "status": "ok" if is_well else "problem",
        "checks": checks,
    }


def _checks() -> Iterator[dict[str, str]]:
    yield python()
    for name in REQUIRED:
        yield package(name)
    for extra in EXTRAS:
        yield an_extra(extra)
    yield cache_folder()
    yield calibration()
    yield gpu()
    yield hub_cache()


def check(name: str, status: Status, detail: str, fix: str = "") -> dict[str, str]:
    """One check's record."""
    return {"name": name, "status": status, "detail": detail, "fix": fix}


def python() -> dict[str, str]:
    """The interpreter and the platform."""
    detail = f"{platform.python_version()} on {platform.platform(terse=True)} {platform.machine()}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return check("python", "problem", detail, "install Python 3.11 or newer")
    return check("python", "ok", detail)


def version(name: str) -> str | None:
    """The installed version of a package, without importing it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def package(name: str) -> dict[str, str]:
    """A package that every verb may need."""
    found = version(name)
    if found is None:
        return check(name, "problem", "not installed", f"pip install {name}")
    return check(name, "ok", found)


def an_extra(extra: str) -> dict[str, str]:
    """An optional part, with the command that installs it."""
    names, adds = EXTRAS[extra]
    found = {name: version(name) for name in names}
    absent = [name for name, got in found.items() if got is None]
    label = f"extra {extra}"
    if absent:
        detail = f"{' and '.join(absent)} not installed; {adds}"
        return check(label, "missing", detail, f"pip install 'worthit[{extra}]'")
    return check(label, "ok", ", ".join(f"{name} {got}" for name, got in found.items()))


def cache_folder() -> dict[str, str]:
    """Whether results can be kept."""
    from worthit.spec.load import calibration_path

    folder = calibration_path().parent
    # The nearest folder that exists is the one that would have to allow making the rest.
    there = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return check(
            "cache folder",
            "problem",
            f"{folder} cannot be written ({error.strerror})",
            "set XDG_CACHE_HOME to a folder that can be written",
        )
    return check("cache folder", "ok", str(folder))


def calibration() -> dict[str, str]:
    """Whether this machine was measured, and how long ago."""
    from worthit.spec.load import calibration_path, load_device

    again = "worthit calibrate"
    try:
        device = load_device("this")
    except MissingCapability:
        return check("calibration", "missing", "this machine was not measured yet", again)
    except WorthitError as error:
        return check("calibration", "problem", str(error), again)
    days = (time.time() - calibration_path().stat().st_mtime) / 86_400
    detail = f"{device.name}, {'today' if days < 1 else f'{days:.0f} days ago'}"
    if days > STALE_DAYS:
        return check("calibration", "missing", f"{detail}: out of date", again)
    return check("calibration", "ok", detail)


def gpu(ask: Callable[[], str] | None = None) -> dict[str, str]:
    """The NVIDIA GPUs that the driver sees, and whether torch can use them."""
    listed = (_ask_driver if ask is None else ask)()
    if not listed:
        return check("gpu", "missing", "no NVIDIA GPU seen by nvidia-smi; the CPU is used")
    seen = "; ".join(listed.splitlines())
    if version("torch") is None:
        return check("gpu", "ok", f"{seen}; torch is not installed", "pip install 'worthit[torch]'")
    import torch

    if torch.cuda.is_available():
        return check("gpu", "ok", f"{seen}; torch uses {torch.cuda.get_device_name(0)}")
    fix = "install a CUDA build of torch that fits the driver: https://pytorch.org/get-started"
    return check("gpu", "problem", f"{seen}; torch {torch.__version__} cannot use it", fix)


def _ask_driver() -> str:
    command = [
        "nvidia-smi",
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader",
    ]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()


def hub_cache() -> dict[str, str]:
    """Where models of the Hugging Face hub are looked for; nothing is ever downloaded."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    folder = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    try:
        n = sum(1 for entry in folder.iterdir() if entry.name.startswith("models--"))
    except OSError:
        return check("hub cache", "missing", f"{folder} does not exist: name models by their files")
    return check("hub cache", "ok", f"{folder}, {n} model{'' if n == 1 else 's'}")


def lines(record: dict[str, Any]) -> list[str]:
    """The checks as a person reads them: one a line, what mends it below."""
    marks = {"ok": "ok", "missing": "-", "problem": "PROBLEM"}
    found = []
    for one in record["checks"]:
        found.append(f"{marks[one['status']]:<8}{one['name']:<14}{one['detail']}")
        if one["fix"]:
            found.append(f"{'':<22}{one['fix']}")
    return found
