"""The header of a GGUF file, versions 2 and 3, read within bounds.

Every length in the file is a claim: it is checked against what is left of the file before anything
is read, large arrays (tokens, merges) are walked over and not kept, and no single text is kept
beyond a size that no real one has.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from worthit.errors import SpecError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
MAX_TEXT_BYTES = 2**24
# Longer arrays are vocabularies: only their length is kept.
MAX_KEPT = 4096
MAX_ITEMS = 50_000_000
DEFAULT_ALIGNMENT = 32

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_TEXT, _ARRAY = 8, 9
# ggml's types by number: name, elements of a block, bytes of a block.
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor: `shape` outermost first, as elsewhere (the file has it the other way round).

    Its data are the `n_bytes` from byte `offset` of the file `path` on.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int
    offset: int = 0
    path: Path | None = None

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Header:
    """Metadata and tensors; of an array too long to keep, its length is the value.

    `order` is that of the bytes of numbers, as `struct` writes it.
    """

    version: int
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    order: str = "<"


def read_header(path: Path, *, max_kept: int = MAX_KEPT) -> Header:
    """Read the header of a GGUF file.

    Args:
        max_kept: entries of an array beyond which only its length is kept.

    Raises:
        SpecError: no such file, or not one of this format: what was expected and got.
    """
    try:
        with path.open("rb", buffering=2**20) as file:
            return _Reader(path, file, path.stat().st_size, max_kept).header()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None


class _Reader:
    def __init__(self, path: Path, file: BinaryIO, n_bytes: int, max_kept: int) -> None:
        self.path = path
        self.max_kept = max_kept
        self.file = file
        self.n_bytes = n_bytes
        self.order = "<"

    def header(self) -> Header:
        magic = self.file.read(len(MAGIC))
        if magic != MAGIC:
            raise self.wrong(f"the file to begin with {MAGIC!r}, got {magic!r}")
        version = self.version()
        n_tensors, n_pairs = self.scalar("Q"), self.scalar("Q")
        # The least that a tensor and a pair take: empty names, one byte of value.
        self.require(n_tensors * 24 + n_pairs * 13, "tensors and metadata")
        metadata: dict[str, Any] = {}
        for _ in range(n_pairs):
            key = self.text("a metadata key")
            metadata[key] = self.value(self.scalar("I"), key)
        found = [self.tensor() for _ in range(n_tensors)]
        start = self.check_data(metadata, found)
        tensors = tuple(replace(t, offset=start + offset, path=self.path) for t, offset in found)
        return Header(version=version, metadata=metadata, tensors=tensors, order=self.order)

    def version(self) -> int:
        raw = self.take(4, "the version")
        for order in ("<", ">"):
            (version,) = struct.unpack(order + "I", raw)
            if version in VERSIONS:
                self.order = order
                return int(version)
        (version,) = struct.unpack("<I", raw)
        raise self.wrong(f"GGUF version 2 or 3, got {version}; convert the file again")

    def tensor(self) -> tuple[TensorInfo, int]:
        name = self.text("a tensor's name")
        n_dims = self.scalar("I")
        if n_dims > MAX_DIMS:
            raise self.wrong(f"tensor {name:.80}: at most {MAX_DIMS} dimensions, got {n_dims}")
        shape = tuple(self.scalar("Q") for _ in range(n_dims))[::-1]
        number, offset = self.scalar("I"), self.scalar("Q")
        if number not in TYPES:
            raise self.wrong(f"tensor {name:.80}: a type of ggml, got number {number}")
        kind, per_block, block_bytes = TYPES[number]
        numel = math.prod(shape)
        if numel % per_block:
            raise self.wrong(
                f"tensor {name:.80}: {kind} in blocks of {per_block}, got {numel} elements"
            )
        n_bytes = numel // per_block * block_bytes
        return TensorInfo(name=name, type=kind, shape=shape, n_bytes=n_bytes), offset

    def check_data(self, metadata: dict[str, Any], found: list[tuple[TensorInfo, int]]) -> int:
        """Where the data start; all of it must be there: a cut-off download is found out here."""
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise self.wrong(f"general.alignment: a positive number, got {alignment!r:.40}")
        start = -(-self.file.tell() // alignment) * alignment
        end = max((offset + tensor.n_bytes for tensor, offset in found), default=0)
        if found and start + end > self.n_bytes:
            raise self.wrong(f"{start + end} bytes with all tensors, got {self.n_bytes}; cut off")
        return start

    def value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _TEXT:
            return self.text(key)
        if kind == _ARRAY:
            return self.array(key)
        raise self.wrong(f"{key:.80}: a type of value from 0 to 12, got {kind}")

    def array(self, key: str) -> Any:
        kind, n_items = self.scalar("I"), self.scalar("Q")
        if kind == _TEXT:
            self.require(8 * n_items, key)
            if n_items > MAX_ITEMS:
                raise self.wrong(f"{key:.80}: at most {MAX_ITEMS} texts, got {n_items}")
            if n_items <= self.max_kept:
                return [self.text(key) for _ in range(n_items)]
            for _ in range(n_items):
                self.skip(self.scalar("Q"), key)
            return n_items
        if kind not in _SCALARS:
            raise self.wrong(f"{key:.80}: an array of numbers or texts, got type {kind}")
        size = struct.calcsize("<" + _SCALARS[kind])
        if n_items <= self.max_kept:
            raw = self.take(size * n_items, key)
            return list(struct.unpack(f"{self.order}{n_items}{_SCALARS[kind]}", raw))
        self.skip(size * n_items, key)
        return n_items

    def text(self, what: str) -> str:
        n_bytes = self.scalar("Q")
        if n_bytes > MAX_TEXT_BYTES:
            raise self.wrong(f"{what:.80}: text of at most {MAX_TEXT_BYTES} bytes, got {n_bytes}")
        return self.take(n_bytes, what).decode("utf-8", errors="replace")

    def scalar(self, code: str) -> Any:
        raw = self.take(struct.calcsize("<" + code), "a number")
        (value,) = struct.unpack(self.order + code, raw)
        # The decimal that was meant: 1e-5 in 32 bits is 9.999999747e-06 in 64.
        return float(f"{value:.7g}") if code == "f" else value

    def take(self, n_bytes: int, what: str) -> bytes:
        self.require(n_bytes, what)
        return self.file.read(n_bytes)

    def skip(self, n_bytes: int, what: str) -> None:
        self.require(n_bytes, what)
        self.file.seek(n_bytes, 1)

    def require(self, n_bytes: int, what: str) -> None:
        left = self.n_bytes - self.file.tell()
        if n_bytes > left:
            raise self.wrong(f"{n_bytes} bytes of {what:.80}, got {left} to the end; cut off")

    def wrong(self, expected_and_got: str) -> SpecError:
        return SpecError(f"{self.path}: expected {expected_and_got}")
