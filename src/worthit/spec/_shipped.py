"""What ships with the package: one JSON file a model, device or workload, found by its name.

The files are trusted here and validated by the tests, so that reading one costs a millisecond.
A name is a file's stem; aliases stand inside the files, which are opened only on a miss.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from worthit.errors import InputError, MissingCapability, SpecError, unknown_name
from worthit.spec.case import Device, Serving, Training, Workload
from worthit.spec.codec import from_json, from_trusted
from worthit.spec.model import ModelSpec

HOME = Path(__file__).parent
THIS_DEVICE = "this"
# Facts about an entry rather than fields of what it describes.
_ABOUT_WORKLOAD = ("id", "aliases", "name", "date", "note", "stage")
_STEM = re.compile(r"[a-z0-9][a-z0-9._-]*")


def preset_names() -> tuple[str, ...]:
    """The names of the models that ship, sorted."""
    return _names("presets")


def load_preset(name: str) -> ModelSpec:
    """Read a model that ships, by name or alias.

    Raises:
        UnknownName: no such preset; the nearest are suggested.
    """
    entry = preset_entry(name)
    if "spec" in entry:
        model = from_trusted(entry["spec"], ModelSpec)
    else:
        from worthit.spec.hf import from_config

        model = from_config(entry["config"], name=entry["id"], where=f"presets/{entry['id']}.json")
    return replace(model, name=entry["id"], source=model.source or entry.get("source", ""))


def preset_entry(name: str) -> dict[str, Any]:
    """A shipped model's whole file: its description, source and usual case."""
    return _entry("presets", name, "model", preset_names)


def device_names() -> tuple[str, ...]:
    """The names of the devices that ship, sorted; `this` stands for the calibrated machine."""
    return _names("devices")


def load_device(name: str) -> Device:
    """Read a device that ships, by name or alias, or `this` machine once it is calibrated.

    Raises:
        UnknownName: no such device; the nearest are suggested.
        MissingCapability: `this`, and the machine has not been calibrated.
    """
    if name.strip().lower() == THIS_DEVICE:
        return _load_this_device()
    entry = _entry("devices", name, "device", lambda: (*device_names(), THIS_DEVICE))
    return from_trusted(entry, Device)


def calibration_path() -> Path:
    """Where this machine's calibration is kept, in the form of a device file."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "worthit" / "calibration.json"


def workload_names() -> tuple[str, ...]:
    """The names of the workloads that ship, sorted."""
    return _names("workloads")


def load_workload(name: str) -> Workload:
    """Read a workload that ships, by name or alias.

    Raises:
        UnknownName: no such workload; the nearest are suggested.
    """
    entry = workload_entry(name)
    stated = {key: value for key, value in entry.items() if key not in _ABOUT_WORKLOAD}
    cls = {"serve": Serving, "train": Training}[stated.pop("kind")]
    return from_trusted({**workload_fields(stated), "name": entry["id"]}, cls)


def workload_entry(name: str) -> dict[str, Any]:
    """A shipped workload's whole file."""
    return _entry("workloads", name, "workload", workload_names)


# Files may spell the unit out; the fields of `Serving` and `Training` are the flags' names.
_WORKLOAD_SPELLINGS = {
    "prompt_tokens": "prompt",
    "output_tokens": "output",
    "train_tokens": "tokens",
    "seq_tokens": "seq",
}


def workload_fields(stated: dict[str, Any]) -> dict[str, Any]:
    """`stated` with spelt-out keys replaced by the names of the fields."""
    return {_WORKLOAD_SPELLINGS.get(key, key): value for key, value in stated.items()}


def _load_this_device() -> Device:
    path = calibration_path()
    again = "run `worthit calibrate` again"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingCapability("this machine is not calibrated", "worthit calibrate") from None
    except OSError as error:
        raise SpecError(f"the calibration {path} cannot be read: {error.strerror}") from None
    except ValueError:  # broken JSON or broken text
        raise SpecError(f"the calibration {path} is not JSON any more; {again}") from None
    try:
        return from_json(data, Device)
    except InputError as error:
        first = error.problems[0]
        raise SpecError(f"the calibration {path} is damaged ({first}); {again}") from None


def _names(folder: str) -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in (HOME / folder).glob("*.json")))


def _entry(folder: str, name: str, kind: str, known: Any) -> dict[str, Any]:
    stem = name.strip().lower()
    if _STEM.fullmatch(stem):
        try:
            return _read(HOME / folder / f"{stem}.json")
        except OSError:  # no such file, or a name longer than a file's can be
            pass
    for entry in _entries(folder):
        if stem in (alias.lower() for alias in entry.get("aliases", ())):
            return entry
    raise unknown_name(kind, name, known())


def _entries(folder: str) -> Iterator[dict[str, Any]]:
    for stem in _names(folder):
        yield _read(HOME / folder / f"{stem}.json")


def _read(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(path.read_bytes())
    return {"id": path.stem, **entry}
