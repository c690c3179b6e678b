"""Activations on disk: written once, read by many, in shards that are whole or not there.

A folder holds `activations.json` and `00000.safetensors`, `00001.safetensors`, ...: a tensor
`(rows, width)` for each point. A shard is written beside its place and renamed, so that a run that
was stopped continues with the first one that is missing, and what is there is never half. Memory is
that of one shard.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from worthit.errors import InputError
from worthit.interp.points import width
from worthit.interp.stream import Rows, Source
from worthit.spec import to_json
from worthit.train.history import disk_error

ABOUT = "activations.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A shard is some hundred megabytes: few files, and little lost when a run is stopped.
SHARD_BYTES = 256_000_000


def write_activations(
    source: Source,
    folder: Path,
    *,
    dtype: str = "bf16",
    shard_bytes: int = SHARD_BYTES,
    on_progress: Callable[[int, int], None] | None = None,
    is_enough: Callable[[int, int], bool] | None = None,
) -> Store:
    """Write all rows of `source`; continue where an earlier run of the same was stopped.

    Args:
        dtype: `fp32`, `bf16` or `fp16`.
        on_progress: is told sequences done, and all.
        is_enough: asked after each shard, of shards written and all; true leaves it at those.

    Raises:
        InputError: the folder holds activations of something else, or a value does not fit `dtype`.
        WorthitError: the disk does not take it; complete shards stay and are continued from.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: pick one of {', '.join(DTYPES)}, got {dtype}")
    row_bytes = source.n_bytes(DTYPES[dtype]) // source.n_rows
    each = max(shard_bytes // (row_bytes * source.rows_each) // source.batch, 1) * source.batch
    about = _about(source, dtype, each)
    _agree(folder, about)
    n_shards = about["n_shards"]
    for i, first in enumerate(range(0, len(source.ids), each)):
        ids = source.ids[first : first + each]
        path = folder / f"{i:05}.safetensors"
        if not path.exists():
            parts = [source.of(some) for some in ids.split(source.batch)]
            rows = {name: torch.cat([part[name] for part in parts]) for name in source.names}
            _write(path, {name: _narrow(name, t, DTYPES[dtype]) for name, t in rows.items()})
        if on_progress is not None:
            on_progress(min(first + each, len(source.ids)), len(source.ids))
        if is_enough is not None and i + 1 < n_shards and is_enough(i + 1, n_shards):
            return Store(folder, n_shards=i + 1)
    return Store(folder)


class Store:
    """Activations that were written.

    Args:
        n_shards: the first so many of its shards; None for all.

    Raises:
        InputError: no such folder, or not all of its shards.
    """

    def __init__(self, folder: Path, *, n_shards: int | None = None) -> None:
        self.folder = Path(folder)
        try:
            about = json.loads((self.folder / ABOUT).read_text())
        except OSError as error:
            raise InputError(f"{self.folder}: holds no activations: {error.strerror}") from None
        self.names: tuple[str, ...] = tuple(about["widths"])
        self.widths: dict[str, int] = about["widths"]
        self.rows_each: int = about["rows_each"]
        self.about: dict[str, Any] = about
        n_shards = about["n_shards"] if n_shards is None else min(n_shards, about["n_shards"])
        most = n_shards * about["sequences_a_shard"] * self.rows_each
        self.n_rows: int = min(about["n_rows"], most)
        self.paths = [self.folder / f"{i:05}.safetensors" for i in range(n_shards)]
        missing = [path.name for path in self.paths if not path.exists()]
        if missing:
            raise InputError(
                f"{self.folder}: {len(missing)} of {len(self.paths)} shards are missing, first "
                f"{missing[0]}; run the command that wrote it again"
            )

    @property
    def n_bytes(self) -> int:
        """Of all shards."""
        return sum(path.stat().st_size for path in self.paths)

    def chunks(self, *, rows: int = 8192, seed: int | None = None) -> Iterator[Rows]:
        """All rows in fp32, some at a time; with a seed, shards and chunks in random order.

        Only the rows that are given are read.
        """
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for path in [self.paths[i] for i in _order(len(self.paths), generator)]:
            try:
                with safe_open(path, framework="pt") as file:
                    slices = {name: file.get_slice(name) for name in self.names}
                    n = slices[self.names[0]].get_shape()[0]
                    for i in _order(-(-n // rows), generator):
                        yield {
                            name: part[i * rows : (i + 1) * rows].float()
                            for name, part in slices.items()
                        }
            except SafetensorError as error:
                raise InputError(f"{path}: damaged ({error}); delete it and run again") from None


def _order(n: int, generator: torch.Generator | None) -> list[int]:
    if generator is None:
        return list(range(n))
    return torch.randperm(n, generator=generator).tolist()  # type: ignore[no-any-return]  # of ints


def _about(source: Source, dtype: str, each: int) -> dict[str, Any]:
    digest = hashlib.sha256(source.ids.numpy().tobytes())
    digest.update(json.dumps(to_json(source.model.spec), sort_keys=True).encode())
    # Two models of one shape: a few weights of each layer tell them apart.
    for _, p in source.model.named_parameters():
        digest.update(p.detach().flatten()[:16].float().numpy().tobytes())
    return {
        "schema": "worthit.activations/1",
        "model": source.model.source or source.model.spec.name,
        "digest": digest.hexdigest(),
        "widths": {name: width(source.model, name) for name in source.names},
        "dtype": dtype,
        "skip": source.skip,
        "rows_each": source.rows_each,
        "n_rows": source.n_rows,
        "sequences_a_shard": each,
        "n_shards": -(-len(source.ids) // each),
    }


def _agree(folder: Path, about: dict[str, Any]) -> None:
    """Write what the folder holds, or see that it already says the same."""
    path = folder / ABOUT
    if path.exists():
        before = json.loads(path.read_text())
        different = [key for key in about if before.get(key) != about[key]]
        if different:
            raise InputError(
                f"{folder}: holds activations of something else ({', '.join(different)} differ); "
                "give another folder or delete it"
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f"{ABOUT}.part"
        beside.write_text(json.dumps(about, indent=1))
        beside.replace(path)
    except OSError as error:
        raise disk_error(path, error) from error


def _narrow(name: str, rows: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = rows.to(dtype)
    if not narrow.isfinite().all():
        what = "not finite" if not rows.isfinite().all() else f"beyond {dtype}; take bf16 or fp32"
        raise InputError(f"{name}: activations are {what}")
    return narrow.contiguous()


def _write(path: Path, tensors: Rows) -> None:
    beside = path.with_suffix(f".{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(save(tensors))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise disk_error(path, error) from error
