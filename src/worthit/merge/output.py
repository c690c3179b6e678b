"""The output folder: laid out before any weight is written, filled in order, renamed when whole.

The headers of all shards are known from the plan, so each tensor has its place from the start and
nothing is held back in memory. Work goes on in a hidden folder beside the target; a journal there
says which tensors are on the disk. A merge that was killed goes on from the journal; one whose
recipe, seed or inputs changed begins anew. The target appears at once, complete, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import IO, Any

import torch
from torch import Tensor

from worthit.errors import InputError, WorthitError
from worthit.merge.plan import Job, Plan
from worthit.spec.checkpoint import DTYPE_BITS, INDEX, LENGTH_BYTES, SINGLE

JOURNAL = "merge.journal"
MAX_SHARD_BYTES = 5 * 10**9
# Between two moments at which everything written so far is made safe: what a loss of power costs.
SYNC_BYTES = 1 << 28
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The place of one tensor: its shard, and its first byte there."""

    job: Job
    shard: str
    start: int
    n_bytes: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file: its header, and how long it is."""

    name: str
    header: bytes = field(repr=False)
    n_bytes: int


def lay_out(jobs: Iterable[Job], max_bytes: int) -> tuple[list[Shard], list[Slot]]:
    """Shards of at most `max_bytes` of tensors each (one larger tensor has its own)."""
    groups: list[list[Job]] = [[]]
    held = 0
    for job in jobs:
        n = n_bytes_of(job)
        if groups[-1] and held + n > max_bytes:
            groups.append([])
            held = 0
        groups[-1].append(job)
        held += n
    shards, slots = [], []
    for i, group in enumerate(groups, 1):
        name = SINGLE if len(groups) == 1 else f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        # Wide formats first: every tensor then starts at a multiple of its element.
        group = sorted(group, key=lambda job: -DTYPE_BITS[job.out_dtype])
        table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for job in group:
            n = n_bytes_of(job)
            table[job.name] = {
                "dtype": job.out_dtype,
                "shape": list(job.shape),
                "data_offsets": [end, end + n],
            }
            end += n
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(LENGTH_BYTES, "little") + text
        shards.append(Shard(name=name, header=header, n_bytes=len(header) + end))
        for job in group:
            begin = table[job.name]["data_offsets"][0]
            slots.append(
                Slot(job=job, shard=name, start=len(header) + begin, n_bytes=n_bytes_of(job))
            )
    return shards, slots


def n_bytes_of(job: Job) -> int:
    """Bytes of an output tensor."""
    n = DTYPE_BITS[job.out_dtype]
    for size in job.shape:
        n *= size
    return n // 8


class Output:
    """A folder being made; use as `with Output(...) as output`, and `output.finish()` at the end.

    Args:
        target: the folder to make; it may exist and be empty.
        plan: what goes into it.
        seed: of random methods.
        max_shard_bytes: of one file.

    Attributes:
        resumed: names of the tensors that an interrupted merge had written.

    Raises:
        InputError: the target is there and has something in it.
        WorthitError: too little space, or another merge at work on the same target.
    """

    def __init__(
        self, target: Path, plan: Plan, *, seed: int, max_shard_bytes: int = MAX_SHARD_BYTES
    ) -> None:
        self.target = target
        self.shards, self.slots = lay_out(plan.jobs, max_shard_bytes)
        self.n_bytes = sum(shard.n_bytes for shard in self.shards)
        self.identity = _identity(plan, seed, self.shards)
        self.folder = target.absolute().parent / f".{target.absolute().name}.partial"
        self.resumed: frozenset[str] = frozenset()
        self._files: dict[str, IO[bytes]] = {}
        self._journal: IO[str] | None = None
        self._waiting: list[str] = []
        self._waiting_bytes = 0
        self._lock_of_place = Lock()

    def __enter__(self) -> Output:
        check_target(self.target)
        try:
            with self._explained():
                self.folder.mkdir(parents=True, exist_ok=True)
                self._journal = (self.folder / JOURNAL).open("a+", encoding="utf-8")
                self._lock()
                self._resume()
                self._check_space()
                for shard in self.shards:
                    self._open(shard)
        except WorthitError:
            self._close()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._journal is not None and not self._journal.closed:
            with contextlib.suppress(OSError):
                self._sync()
        self._close()
        if isinstance(error, InputError):
            # Going on would meet the same weight again.
            self.discard()

    def discard(self) -> None:
        """Remove what was written."""
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def todo(self) -> Iterator[Slot]:
        """The tensors that are still to be written, in order."""
        for slot in self.slots:
            if slot.job.name not in self.resumed:
                yield slot

    def write(self, slot: Slot, pieces: Iterable[Tensor]) -> None:
        """Write one tensor, piece by piece, each contiguous and in the output's format.

        Threads may write different tensors at once; `written` is for the one that has the output.
        """
        file = self._files[slot.shard]
        written = 0
        with self._explained():
            for piece in pieces:
                data = memoryview(piece.flatten().view(torch.uint8).numpy())
                while data:
                    n = self._write_at(file, data, slot.start + written)
                    written += n
                    data = data[n:]
        assert written == slot.n_bytes, f"{slot.job.name}: {written} of {slot.n_bytes} bytes"

    def _write_at(self, file: IO[bytes], data: memoryview, place: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(file.fileno(), data, place)
        with self._lock_of_place:
            file.seek(place)
            return file.write(data)

    def written(self, slot: Slot) -> None:
        """Remember that a tensor is there; now and then, put all that are on the disk."""
        self._waiting.append(slot.job.name)
        self._waiting_bytes += slot.n_bytes
        if self._waiting_bytes >= SYNC_BYTES:
            with self._explained():
                self._sync()

    def finish(self) -> None:
        """Write the index, make all of it safe, and give the folder its name."""
        with self._explained():
            self._sync()
            if len(self.shards) > 1:
                total = sum(slot.n_bytes for slot in self.slots)
                index = {
                    "metadata": {"total_size": total},
                    "weight_map": {slot.job.name: slot.shard for slot in self.slots},
                }
                write_json(self.folder / INDEX, index)
            (self.folder / JOURNAL).unlink()
            self._close()
            if self.target.is_dir():
                self.target.rmdir()
            self.folder.rename(self.target)
            _sync_folder(self.target.absolute().parent)

    # Inside

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in NO_SPACE:
                raise WorthitError(
                    f"{self.target}: the disk is full; {self.n_bytes / 1e9:.3g} GB are needed in "
                    "all. Make room and run the same command: it goes on from here"
                ) from None
            reason = (error.strerror or str(error)).lower()
            raise WorthitError(f"{self.target}: cannot be written: {reason}") from None

    def _lock(self) -> None:
        assert self._journal is not None
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            return
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorthitError(f"{self.target}: another merge is writing it") from None

    def _resume(self) -> None:
        """Believe the journal of the same merge; throw away what another one left."""
        assert self._journal is not None
        self._journal.seek(0)
        lines = self._journal.read().split("\n")
        # A line that was cut off names a tensor that is written again.
        done = frozenset(lines[1:-1])
        is_same = lines[0] == self.identity and all(
            (self.folder / shard.name).is_file() for shard in self.shards
        )
        if is_same and len(lines) > 1:
            self.resumed = done & {slot.job.name for slot in self.slots}
            return
        for path in self.folder.iterdir():
            if path.name != JOURNAL:
                path.unlink()
        self._journal.truncate(0)
        self._journal.write(self.identity + "\n")
        self._journal.flush()

    def _check_space(self) -> None:
        there = sum(_used(self.folder / shard.name) for shard in self.shards)
        free = shutil.disk_usage(self.folder).free
        if self.n_bytes - there > free:
            needed = self.n_bytes - there
            if not self.resumed:
                self.discard()
            raise WorthitError(
                f"{self.target}: {needed / 1e9:.3g} GB are needed and {free / 1e9:.3g} GB are "
                "free; make room, or write to another disk"
            )

    def _open(self, shard: Shard) -> None:
        path = self.folder / shard.name
        if path.is_file():
            self._files[shard.name] = path.open("r+b", buffering=0)
            return
        file = path.open("w+b", buffering=0)
        file.write(shard.header)
        file.truncate(shard.n_bytes)
        self._files[shard.name] = file

    def _sync(self) -> None:
        """Put tensors on the disk first, and only then say in the journal that they are there."""
        assert self._journal is not None
        for file in self._files.values():
            os.fsync(file.fileno())
        if self._waiting:
            self._journal.write("".join(f"{name}\n" for name in self._waiting))
            self._journal.flush()
            os.fsync(self._journal.fileno())
        self._waiting.clear()
        self._waiting_bytes = 0

    def _close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        self._files.clear()
        if self._journal is not None:
            self._journal.close()


def check_target(target: Path) -> None:
    """Raise `InputError` where something would be overwritten."""
    if target.is_dir():
        if any(target.iterdir()):
            raise InputError(f"{target}: is there and not empty; remove it or choose another name")
    elif target.exists() or target.is_symlink():
        raise InputError(f"{target}: is there and no folder; choose another name")


def write_json(path: Path, data: object) -> None:
    """Write JSON as people read it."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _identity(plan: Plan, seed: int, shards: Iterable[Shard]) -> str:
    """What must be the same for a merge to go on: recipe, seed, inputs and layout."""
    import worthit

    inputs: dict[str, Any] = {}
    for member in plan.members.values():
        paths = {t.file for t in member.tensors.values()}
        if member.adapter is not None:
            paths |= {t.file for u in member.adapter.updates.values() for t in (u.down, u.up)}
        for path in sorted(p for p in paths if p is not None):
            stat = path.stat()
            inputs[str(path.resolve())] = (stat.st_size, stat.st_mtime_ns)
    jobs: list[Mapping[str, Any]] = [
        {"name": j.name, "arguments": repr(j.arguments), "inputs": [m for m, _ in j.inputs]}
        for j in plan.jobs
    ]
    data = {
        "version": worthit.__version__,
        "recipe": plan.recipe.text,
        "seed": seed,
        "inputs": inputs,
        "jobs": jobs,
        "shards": [shard.header[LENGTH_BYTES:].decode() for shard in shards],
    }
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _used(path: Path) -> int:
    """Bytes that a file takes on the disk: one made in advance is mostly holes."""
    return path.stat().st_blocks * 512 if path.is_file() else 0


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
