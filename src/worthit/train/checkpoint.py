"""A run on disk, whole or not at all: tensors as safetensors, everything else as JSON inside it.

A checkpoint is one file. It is written beside its place, forced to the disk, and renamed; the one
before it stays, for the case that the newest is damaged after all. Nothing is ever pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from worthit.errors import InputError
from worthit.train.history import disk_error

NEWEST, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
# The layout of what is written: a file of another one is refused, not guessed at.
VERSION = 1
_TREE = "worthit"


def save_checkpoint(folder: Path, tree: Mapping[str, Any]) -> None:
    """Write `tree`, mappings and lists of tensors and JSON values, as the newest checkpoint.

    Raises:
        WorthitError: the disk does not take it; the checkpoints before are as they were.
    """
    tensors: dict[str, Tensor] = {}
    layout = json.dumps({"version": VERSION, "tree": _packed(tree, "", tensors)})
    newest = folder / NEWEST
    beside = folder / f"{NEWEST}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(save(tensors, metadata={_TREE: layout}))
            file.flush()
            os.fsync(file.fileno())
        if newest.exists():
            newest.replace(folder / PREVIOUS)
        beside.replace(newest)
        _sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise disk_error(newest, error) from error


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole; None where none was ever written.

    Warns where the newest is damaged and the one before it is used.

    Raises:
        InputError: there are checkpoints, and all are damaged, or are of another version.
    """
    problems = []
    for name in (NEWEST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            tree = _read(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            problems.append(f"{path}: damaged ({error})")
            continue
        if problems:
            warnings.warn(f"{problems[0]}; continuing from {name}", stacklevel=2)
        return tree
    if problems:
        raise InputError(*problems, f"{folder}: remove these files to start the run over")
    return None


def _read(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        layout = json.loads((file.metadata() or {})[_TREE])
        if layout["version"] != VERSION:
            raise InputError(
                f"{path}: a checkpoint of version {layout['version']}, and this is worthit with "
                f"version {VERSION}; continue with the one that wrote it, or start over"
            )
        # In memory of their own: within the file they start anywhere, and products sum otherwise
        # where an operand is not aligned.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    tree = _unpacked(layout["tree"], tensors)
    assert isinstance(tree, dict)
    return tree


def _packed(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`node` as JSON: tensors move to `tensors`, and mappings keep keys that are numbers."""
    if isinstance(node, Tensor):
        # How it lies in memory is kept: products sum in the order of memory.
        axes = sorted(range(node.ndim), key=lambda axis: -node.stride(axis))
        laid_out = node.detach().cpu().permute(axes)
        # A copy of its own: slices of one storage must not be written as one.
        tensors[path] = laid_out.clone(memory_format=torch.contiguous_format)
        return {"tensor": path, "axes": axes}
    if isinstance(node, Mapping):
        pairs = [[key, _packed(inner, f"{path}/{key}", tensors)] for key, inner in node.items()]
        return {"pairs": pairs}
    if isinstance(node, (list, tuple)):
        return [_packed(inner, f"{path}/{i}", tensors) for i, inner in enumerate(node)]
    return node


def _unpacked(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_unpacked(inner, tensors) for inner in node]
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        axes = node["axes"]
        return tensors[node["tensor"]].permute([axes.index(axis) for axis in range(len(axes))])
    return {key: _unpacked(inner, tensors) for key, inner in node["pairs"]}


def _sync_folder(folder: Path) -> None:
    """Force the renames themselves to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
