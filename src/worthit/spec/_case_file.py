"""A case file, TOML or JSON, to a `Case`.

A file holds what `to_json(case)` writes, and shorter forms that people prefer: a model or workload
by its name, hardware as `h100:8`, any part started from what ships and changed in a field or two.
`docs/case.md` shows all of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from worthit.errors import CaseError, SpecError
from worthit.spec._build import CHOICES, build_case, check_choices, parse_hardware, usual_case
from worthit.spec._problems import Problems, located
from worthit.spec._shipped import (
    load_device,
    load_preset,
    load_workload,
    preset_names,
    workload_fields,
)
from worthit.spec.case import (
    Case,
    Data,
    Device,
    Hardware,
    Layout,
    Runtime,
    Serving,
    Training,
    Workload,
)
from worthit.spec.codec import from_json, shown, suggest, to_json
from worthit.spec.model import ModelSpec

T = TypeVar("T")
CASE_KEYS = tuple(field.name for field in fields(Case))
CASE_SUFFIXES = (".toml", ".json")
TRAINING_KEYS = {field.name for field in fields(Training)} - {"name", "source"}


def find_case(target: str, **flags: Any) -> Case:
    """The case that `MODEL|CASE.toml` and flags on the command line describe.

    Args:
        target: a case file, or whatever names a model (see `worthit.spec.resolve`).
        flags: arguments of `build_case`; None is not given.
    """
    path = Path(target)
    if path.suffix == ".toml":
        return load_case(path, **flags)
    if path.suffix == ".json" and path.is_file():
        data = _parse(path)
        if isinstance(data, dict) and "model" in data and "model_type" not in data:
            return load_case(path, **flags)
    model, warnings = _resolve(target)
    return _with_warnings(build_case(model, **_given(flags)), warnings)


def load_case(source: str | os.PathLike[str] | Mapping[str, Any], **flags: Any) -> Case:
    """Read a case from a TOML or JSON file, or from the same as a mapping.

    Args:
        source: the file; paths inside it are relative to its folder.
        flags: arguments of `build_case` that go before what the file says; None is not given.

    Raises:
        InputError: everything that is wrong, at once, each with its path in the file.
    """
    if isinstance(source, Mapping):
        return _read_case(source, folder=Path(), where="", flags=_given(flags))
    path = Path(source)
    data = _parse(path)
    if not isinstance(data, dict):
        raise CaseError(f"{path.name}: a case is a table, got {shown(data)}")
    return _read_case(data, folder=path.parent, where=path.name, flags=_given(flags))


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flags.items() if value is not None}


# --- text to data ------------------------------------------------------------------------------

_TOML_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)


def _parse(path: Path) -> Any:
    """The content of a file; every way in which it cannot be had is one sentence."""
    if path.suffix.lower() not in CASE_SUFFIXES:
        raise CaseError(
            f"{path}: a case file ends in .toml or .json; for a model alone, give its name"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise CaseError(f"{path}: no such file") from None
    except OSError as error:
        raise CaseError(
            f"{path}: cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None
    except UnicodeDecodeError as error:
        raise CaseError(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    return _parse_json(text, path) if path.suffix.lower() == ".json" else _parse_toml(text, path)


def _parse_json(text: str, path: Path) -> Any:
    import json

    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = _plain_message(error.msg)
        raise CaseError(
            f"{path}, line {error.lineno}, column {error.colno}: broken JSON: {message}"
        ) from None
    except RecursionError:
        raise CaseError(f"{path}: nested too deeply to be a case") from None


def _parse_toml(text: str, path: Path) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = _TOML_PLACE.fullmatch(str(error))
        message = _plain_message(match[1] if match else str(error))
        if match and match[2]:
            place = f"line {match[2]}, column {match[3]}"
        else:
            place = f"line {text.count(chr(10)) + 1}, the end"
        raise CaseError(f"{path}, {place}: broken TOML: {message}") from None
    except RecursionError:
        raise CaseError(f"{path}: nested too deeply to be a case") from None


def _plain_message(message: str) -> str:
    message = message.replace("Expecting", "Expected")
    return message[:1].lower() + message[1:].removesuffix(".")


# --- data to a case ----------------------------------------------------------------------------


def _read_case(data: Mapping[str, Any], *, folder: Path, where: str, flags: dict[str, Any]) -> Case:
    found = Problems()
    if "model_type" in data and "model" not in data:
        raise CaseError(
            "this is a model's config.json and no case; judge it as it is, or write "
            '[model] path = "config.json" in a case',
            context=where,
        )
    for key in data:
        if key not in CASE_KEYS:
            with found:
                raise CaseError(f"{key}: {suggest(str(key), CASE_KEYS)}")
    name = ""
    warnings: tuple[str, ...] = ()
    with found:
        name = _text(data, "name")
    with found:
        warnings = _texts(data, "warnings")

    model: ModelSpec | None = None
    with found:
        model, strange = _model(data.get("model"), folder, name)
        warnings = (*warnings, *strange)
    parts: dict[str, Any] = {}
    for key, read in (("workload", _workload), ("hardware", _hardware)):
        with found:
            parts |= read(data[key]) if data.get(key) is not None else {}
    if data.get("data") is not None:
        with found:
            parts["data"] = _data(data["data"], folder)
    if data.get("runtime") is not None:
        with found:
            base = from_json(usual_case(model).get("runtime", {}) if model else {}, Runtime)
            parts["runtime"] = _changed(base, data["runtime"], Runtime, ("runtime",))
    parts |= {key: data[key] for key in CHOICES if data.get(key) is not None}
    if model is None:
        with found:
            check_choices(**{key: data.get(key) for key in CHOICES})
        found.raise_any(where)
    assert model is not None
    # Parts found wrong are absent from here on, and what stands in for them is never wrong: one
    # run reports the problems inside the parts and those across them.
    case: Case | None = None
    with found:
        case = build_case(model, name=name, **(parts | flags))
    found.raise_any(where)
    assert case is not None
    return _with_warnings(case, warnings)


def _with_warnings(case: Case, stated: tuple[str, ...]) -> Case:
    return replace(case, warnings=tuple(dict.fromkeys((*stated, *case.warnings))))


def _model(data: Any, folder: Path, name: str) -> tuple[ModelSpec, tuple[str, ...]]:
    """The model of a case, and warnings about where it came from."""
    if data is None:
        raise CaseError(
            'model: missing; write model = "llama-3.1-8b", or a [model] table with preset, path '
            "or the model's own fields"
        )
    if isinstance(data, str):
        with located("model"):
            beside = folder / data
            return _resolve(str(beside) if beside.exists() else data)
    _require_table(data, "model")
    if "path" in data:
        if "preset" in data:
            raise CaseError("model: give preset or path, got both")
        text = _text(data, "path", "model.")
        with located("model.path"):
            base, warnings = _resolve(str(folder / Path(text).expanduser()))
        rest = {key: value for key, value in data.items() if key != "path"}
        return _changed(base, rest, ModelSpec, ("model",)), warnings
    if "preset" not in data:
        data = {"name": name or "model", **data}
    return _from_preset(data, load_preset, ModelSpec, ("model",)), ()


def _workload(data: Any) -> dict[str, Any]:
    if isinstance(data, str):
        with located("workload"):
            return {"workload": load_workload(data)}
    _require_table(data, "workload")
    data = workload_fields(data)
    if "preset" in data:
        preset = _text(data, "preset", "workload.")
        with located("workload.preset"):
            base = load_workload(preset)
        rest = {key: value for key, value in data.items() if key != "preset"}
        if rest:  # no longer the workload of that name
            rest = {"name": "", "source": "", **rest}
        return {"workload": _changed(base, rest, type(base), ("workload",))}
    kind = data.get("kind", "train" if TRAINING_KEYS & data.keys() else "serve")
    if kind not in ("serve", "train"):
        raise SpecError(f"workload.kind: must be serve or train, got {shown(kind)}")
    cls: type[Workload] = Serving if kind == "serve" else Training
    return {"workload": from_json({"kind": kind, **data}, cls, path=("workload",))}


def _hardware(data: Any) -> dict[str, Any]:
    if isinstance(data, str):
        with located("hardware"):
            return {"on": parse_hardware(data)}
    _require_table(data, "hardware")
    found = Problems()
    known = ("device", "n_devices", "layout")
    for key in data:
        if key not in known:
            with found:
                raise CaseError(f"hardware.{key}: {suggest(str(key), known)}")
    parts: dict[str, Any] = {}
    if data.get("layout") is not None:
        with found:
            parts["layout"] = from_json(data["layout"], Layout, path=("hardware", "layout"))
    with found:
        parts |= _devices(data.get("device"), data.get("n_devices"))
    found.raise_any()
    return parts


def _devices(device: Any, n_devices: Any) -> dict[str, Any]:
    found = Problems()
    hardware: Hardware | None = None
    if isinstance(device, str):
        with found.at("hardware.device"):
            hardware = parse_hardware(device)
            if ":" in device and n_devices not in (None, hardware.n_devices):
                raise CaseError(f"says {device!r} beside n_devices {n_devices}; say it once")
    elif device is not None:
        with found:
            _require_table(device, "hardware.device")
            made = _from_preset(device, load_device, Device, ("hardware", "device"))
            hardware = Hardware(device=made)
    elif n_devices is not None:
        with found:
            raise CaseError('hardware.device: missing; write device = "h100" beside n_devices')
    count = 1 if n_devices is None else n_devices
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        with found:
            raise CaseError(
                f"hardware.n_devices: must be a positive whole number, got {shown(n_devices)}"
            )
    found.raise_any()
    if hardware is None:
        return {}
    if n_devices is not None:
        hardware = Hardware(device=hardware.device, n_devices=count)
    return {"on": hardware}


def _data(data: Any, folder: Path) -> Data:
    """Facts of the data; preferences may be a file, which is read."""
    _require_table(data, "data")
    preferences = data.get("preferences")
    if not isinstance(preferences, str):
        return from_json(data, Data, path=("data",))
    from worthit.spec.preference_stats import read_facts

    found = Problems()
    rest = {key: value for key, value in data.items() if key != "preferences"}
    stated, facts = Data(), None
    with found:
        stated = from_json(rest, Data, path=("data",))
    with found.at("data.preferences"):
        facts = read_facts(folder / Path(preferences).expanduser())
    found.raise_any()
    return replace(stated, preferences=facts)


def _from_preset(
    data: Mapping[str, Any], load: Callable[[str], T], cls: type[T], path: tuple[str, ...]
) -> T:
    """A `cls` in full, or `preset` with some fields changed."""
    if "preset" not in data:
        return from_json(data, cls, path=path)
    where = ".".join(path)
    preset = _text(data, "preset", f"{where}.")
    with located(f"{where}.preset"):
        base = load(preset)
    rest = {key: value for key, value in data.items() if key != "preset"}
    return _changed(base, rest, cls, path)


def _changed(base: T, changes: Any, cls: type[T], path: tuple[str, ...]) -> T:
    """`base` with the fields that `changes` states; tables are merged, all else replaced."""
    _require_table(changes, ".".join(path))
    return from_json(_merged(to_json(base), changes), cls, path=path) if changes else base


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(old, value) if both else value  # type: ignore[arg-type]  # `both`
    return merged


def _resolve(text: str) -> tuple[ModelSpec, tuple[str, ...]]:
    """The model that `text` names, and what is strange about its files."""
    if text in preset_names():
        return load_preset(text), ()
    from worthit.spec.resolve import resolve

    found = resolve(text)
    return found.model, found.warnings


def _require_table(data: Any, where: str) -> None:
    if not isinstance(data, Mapping):
        raise CaseError(f"{where}: must be a table, got {shown(data)}")


def _text(data: Mapping[str, Any], key: str, prefix: str = "") -> str:
    value = data.get(key, "")
    if not isinstance(value, str):
        raise CaseError(f"{prefix}{key}: must be text, got {shown(value)}")
    return value


def _texts(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = data.get(key, ())
    if not isinstance(value, (list, tuple)) or not all(isinstance(x, str) for x in value):
        raise CaseError(f"{key}: must be a list of texts, got {shown(value)}")
    return tuple(value)
