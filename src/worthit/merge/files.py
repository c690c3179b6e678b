"""Tensors in safetensors files as rows, read when they are asked for.

    W' = W + s B A          a LoRA adapter, added to the rows that are read

Files are read, not mapped: pages of a mapped file count as the memory of whoever touched them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from worthit.errors import InputError
from worthit.spec.checkpoint import Tensor as Stored

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class Files:
    """Open files, each opened once; close them when the merge is over. Threads may share one."""

    def __init__(self) -> None:
        self._open: dict[Path, Any] = {}
        self._lock = Lock()

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()

    def read(self, stored: Stored, start: int, n_bytes: int) -> Tensor:
        """Bytes of a tensor, from `start` in it."""
        assert stored.file is not None
        with self._lock:
            if stored.file not in self._open:
                self._open[stored.file] = stored.file.open("rb", buffering=0)
            file = self._open[stored.file]
        raw = torch.empty(n_bytes, dtype=torch.uint8)
        view = memoryview(raw.numpy())
        done = 0
        while done < n_bytes:
            got = self._read_at(file, view[done:], stored.start + start + done)
            if not got:
                raise InputError(f"{stored.file}: tensor {stored.name}: cut off while it was read")
            done += got
        return raw

    def _read_at(self, file: Any, view: memoryview, place: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(file.fileno(), [view], place)
        # A place in a file is one for all threads where the system reads from no other.
        with self._lock:
            file.seek(place)
            n: int = file.readinto(view)
            return n


class FileRows:
    """The rows of one stored tensor, in the numbers of the arithmetic.

    Args:
        files: the open files.
        stored: what the header says of the tensor.
        where: the checkpoint, for messages.
        dtype: rounded to this first, where the recipe has a `dtype`; None keeps what is stored.
        wide: the format of the arithmetic.
    """

    def __init__(
        self,
        files: Files,
        stored: Stored,
        *,
        where: str,
        dtype: torch.dtype | None = None,
        wide: torch.dtype = torch.float32,
    ) -> None:
        self.files = files
        self.stored = stored
        self.where = where
        self.dtype = dtype
        self.wide = wide
        self.n_rows, self.n_columns = as_rows(stored.shape)

    def read(self, start: int, stop: int) -> Tensor:
        """See `worthit.merge.stack.Rows`.

        Raises:
            InputError: a weight that is no number, or infinite.
        """
        plain = TORCH[self.stored.dtype]
        width = self.n_columns * plain.itemsize
        raw = self.files.read(self.stored, start * width, (stop - start) * width)
        rows = raw.view(plain).reshape(stop - start, self.n_columns)
        rows = self.added(rows, start, stop)
        if self.dtype is not None and rows.dtype != self.dtype:
            rows = rows.to(self.dtype)
        rows = rows.to(self.wide)
        # A sum is finite unless an entry is not, or, rarely, unless it overflows.
        if not torch.isfinite(rows.sum()) and not torch.isfinite(rows).all():
            self._refuse(rows, start)
        return rows

    def added(self, rows: Tensor, start: int, stop: int) -> Tensor:
        """Rows with whatever is added to the stored ones."""
        return rows

    def _refuse(self, rows: Tensor, start: int) -> None:
        bad = (~torch.isfinite(rows)).nonzero()
        row, column = (int(x) for x in bad[0])
        value = float(rows[row, column])
        raise InputError(
            f"{self.where}: tensor {self.stored.name}: {value} at row {start + row}, column "
            f"{column}, and nothing can be merged with it; that checkpoint is broken"
        )


class AdaptedRows(FileRows):
    """Rows of a weight with a LoRA adapter's product added: `s B A`, or its transpose.

    Args:
        down, up: the adapter's A `(rank, d_in)` and B `(d_out, rank)`.
        factor: the adapter's s.
        is_transposed: whether the weight is stored as `(d_in, d_out)`.
    """

    def __init__(
        self,
        files: Files,
        stored: Stored,
        *,
        down: Stored,
        up: Stored,
        factor: float,
        is_transposed: bool,
        where: str,
        dtype: torch.dtype | None = None,
        wide: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(files, stored, where=where, dtype=dtype, wide=wide)
        self.down, self.up = down, up
        self.factor = factor
        self.is_transposed = is_transposed

    @cached_property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Both factors such that the product of the first one's rows and the second is added."""
        parts = []
        for stored in (self.up, self.down):
            part = FileRows(self.files, stored, where=self.where)
            parts.append(part.read(0, part.n_rows))
        up, down = parts
        return (down.T, up.T) if self.is_transposed else (up, down)

    def added(self, rows: Tensor, start: int, stop: int) -> Tensor:
        """The rows and their share of the product, in fp32."""
        left, right = self.factors
        return rows.float().addmm(left[start:stop], right, alpha=self.factor)


def as_rows(shape: Sequence[int]) -> tuple[int, int]:
    """A shape as rows and columns: the last axis is the columns, a vector is one row.

    >>> as_rows((8, 3, 5)), as_rows((7,)), as_rows(())
    ((24, 5), (1, 7), (1, 1))
    """
    if len(shape) < 2:
        return 1, shape[0] if shape else 1
    return math.prod(shape[:-1]), shape[-1]
