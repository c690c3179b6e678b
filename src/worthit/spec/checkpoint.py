"""A checkpoint folder by its headers: config.json and the tensors' names, dtypes and shapes.

A safetensors file begins with the length of its header, 8 bytes little-endian, and the header, a
JSON object from each tensor's name to its dtype, shape and place in the data that follow. That is
all that is read: no weights, and no library that would.

Source:
    The safetensors format, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from worthit.errors import SpecError
from worthit.spec._tensors import mismatch
from worthit.spec.model import ModelSpec, Precision

LENGTH_BYTES = 8
# The reference implementation's own limit on a header.
MAX_HEADER_BYTES = 100_000_000
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Bits of one stored element; several logical weights may be packed into one of an integer type.
DTYPE_BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
    "C64": 64,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "U8": 8,
    "BOOL": 8,
}
_FORMATS = {
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "F8_E4M3": "fp8",
    "F8_E5M2": "fp8",
    "I8": "int8",
}
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|embed_in|embeddings?|word_embeddings|tok_embeddings|wte|wpe|embed_out"
    r"|embed_positions|lm_head)\.weight$|^(head|output)\.weight$"
)
# Buffers that some writers stored: masks, rotary tables, a router's balancing bias.
_BUFFER = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|inv_freq|masked_bias|e_score_correction_bias)$|\.attn\.bias$"
    r"|\.attention\.bias$|\.expert_bias$"
)
# Scales, zero points and tables beside quantized weights.
_SCALE = re.compile(
    r"([._](scales?|scale_inv|zeros|qzeros|g_idx|absmax|quant_map|nested_absmax|nested_quant_map"
    r"|input_scale|zero_point|weight_shape|weight_g_idx|SCB|global_scale)$)|\.quant_state\."
)


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """What a header says of one tensor, and where its bytes are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int
    file: Path | None = None
    start: int = 0

    @property
    def numel(self) -> int:
        """Stored elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model, and what its files say of themselves.

    `n_params` counts weights and biases as the model uses them: quantized ones unpacked, without
    scales, buffers and a second copy of a tied head. Zero where the folder has no tensors.
    """

    model: ModelSpec
    n_tensors: int
    n_params: int
    bytes_by_dtype: dict[str, int]
    warnings: tuple[str, ...] = ()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder of a `config.json` and safetensors files.

    Raises:
        SpecError: no config, weights as a pickle alone, or a file that is not what it should be.
    """
    from worthit.spec.resolve import read_config_file

    if not (folder / "config.json").is_file():
        raise SpecError(f"{folder}: no config.json in this folder{_adapter(folder)}")
    model = read_config_file(folder / "config.json")
    tensors = read_tensors(folder)
    if not tensors:
        return Checkpoint(model=model, n_tensors=0, n_params=0, bytes_by_dtype={})
    by_dtype: Counter[str] = Counter()
    for tensor in tensors:
        by_dtype[tensor.dtype] += tensor.n_bytes
    precision, warnings = _precision(model, tensors)
    n_params = _count(model, tensors)
    return Checkpoint(
        model=replace(model, precision=precision, source=str(folder)),
        n_tensors=len(tensors),
        n_params=n_params,
        bytes_by_dtype=dict(by_dtype.most_common()),
        warnings=(*warnings, *mismatch(model, n_params)),
    )


def read_tensors(folder: Path) -> list[Tensor]:
    """Every tensor of a folder's safetensors files; empty where the folder has no weights.

    Raises:
        SpecError: weights as a pickle alone, a shard missing or damaged.
    """
    index = folder / INDEX
    if index.is_file():
        return _read_sharded(folder, index)
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        _refuse_pickles(folder)
        return []
    shards = [file for file in files if re.search(r"-\d+-of-\d+\.safetensors$", file.name)]
    if len(files) > 1 and len(shards) != len(files):
        names = ", ".join(file.name for file in files)
        raise SpecError(f"{folder}: which of {names} belong together is said by {INDEX}: missing")
    if shards:
        expected = int(shards[0].stem.rsplit("-", 1)[1])
        if len(shards) != expected:
            raise SpecError(f"{folder}: expected {expected} shards, got {len(shards)}")
    return [tensor for file in files for tensor in read_header(file)]


def _read_sharded(folder: Path, index: Path) -> list[Tensor]:
    from worthit.spec.resolve import read_json

    data = read_json(index)
    placed = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(placed, dict) or not all(isinstance(v, str) for v in placed.values()):
        raise SpecError(f"{index}: expected an object `weight_map` from tensors to files")
    names = sorted(set(placed.values()))
    # A name with a folder in it could lead out of the checkpoint.
    missing = [n for n in names if Path(n).name != n or not (folder / n).is_file()]
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise SpecError(f"{index}: names {len(missing)} files that are not here: {some}")
    tensors = {t.name: t for name in names for t in read_header(folder / name)}
    if absent := sorted(set(placed) - set(tensors)):
        raise SpecError(
            f"{index}: names {len(absent)} tensors that no file has, the first is {absent[0]}"
        )
    return list(tensors.values())


def read_header(path: Path) -> list[Tensor]:
    """The tensors that one safetensors file's header describes.

    Raises:
        SpecError: a file that is cut off or not of this format: what was expected and got.
    """
    try:
        n_file = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(LENGTH_BYTES)
            if len(start) < LENGTH_BYTES:
                raise SpecError(f"{path}: expected a header, got a file of {n_file} bytes")
            n_header = int.from_bytes(start, "little")
            if n_header > min(MAX_HEADER_BYTES, n_file - LENGTH_BYTES):
                raise SpecError(
                    f"{path}: expected a header of {n_header} bytes, got {n_file - LENGTH_BYTES} "
                    "bytes after its length; cut off, or not a safetensors file"
                )
            raw = file.read(n_header)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        raise SpecError(
            f"{path}: expected a JSON header, got {raw[:20]!r}; not a safetensors file"
        ) from None
    if not isinstance(header, dict):
        raise SpecError(f"{path}: expected a JSON object, got {type(header).__name__}")
    n_before = LENGTH_BYTES + n_header
    entries = ((name, entry) for name, entry in header.items() if name != "__metadata__")
    return [_tensor(path, name, entry, n_before, n_file - n_before) for name, entry in entries]


def _tensor(path: Path, name: str, entry: Any, n_before: int, n_data: int) -> Tensor:
    where = f"{path}: tensor {name}"
    if not isinstance(entry, dict):
        raise SpecError(f"{where}: expected an object, got {entry!r:.60}")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if dtype not in DTYPE_BITS:
        raise SpecError(f"{where}: expected a dtype of {', '.join(DTYPE_BITS)}, got {dtype!r:.60}")
    if not _are_sizes(shape):
        raise SpecError(f"{where}: expected a shape of whole numbers, got {shape!r:.60}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise SpecError(f"{where}: expected two data_offsets, got {offsets!r:.60}")
    begin, end = offsets
    expected = math.ceil(math.prod(shape) * DTYPE_BITS[dtype] / 8)
    if end - begin != expected:
        raise SpecError(f"{where}: expected {expected} bytes of data, got {end - begin}")
    if end > n_data:
        raise SpecError(f"{where}: expected {end} bytes of data in the file, got {n_data}; cut off")
    return Tensor(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        n_bytes=expected,
        file=path,
        start=n_before + begin,
    )


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _refuse_pickles(folder: Path) -> None:
    from worthit.spec.resolve import PICKLES, refusal_of_pickle

    pickles = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in PICKLES)
    if pickles:
        raise SpecError(f"{folder}: {refusal_of_pickle(pickles[0])}")


def _adapter(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "; it holds an adapter: give the model that it was trained on"
    return ""


def is_embedding(name: str) -> bool:
    """Whether a tensor is an input table or an output head, by its name."""
    return _EMBEDDING.search(name) is not None


def _precision(model: ModelSpec, tensors: Iterable[Tensor]) -> tuple[Precision, list[str]]:
    """The formats as stored: what the config says is a plan, the tensors are the fact."""
    layers: Counter[str] = Counter()
    tables: Counter[str] = Counter()
    for tensor in tensors:
        if len(tensor.shape) < 2 or _SCALE.search(tensor.name) or _BUFFER.search(tensor.name):
            continue
        (tables if is_embedding(tensor.name) else layers)[tensor.dtype] += tensor.n_bytes
    stated = model.precision
    embeddings = _most(tables, stated.embeddings)
    # Packed integers show no width of their own: it is the config's quantization that says it.
    is_quantized = stated.weights not in _FORMATS.values() or stated.weights in ("fp8", "int8")
    if is_quantized:
        return replace(stated, embeddings=embeddings), []
    weights = _most(layers, stated.weights)
    warnings = []
    if weights != stated.weights:
        warnings.append(
            f"the config says {stated.weights} and the tensors are {weights}: judged as stored"
        )
    plain = weights if weights in ("fp32", "fp16", "bf16") else stated.activations
    return replace(
        stated, weights=weights, embeddings=embeddings, activations=plain, cache=plain
    ), warnings


def _most(n_bytes: Mapping[str, int], otherwise: str) -> str:
    """The format of the dtype with the most bytes among those that are formats."""
    known = {dtype: n for dtype, n in n_bytes.items() if dtype in _FORMATS}
    return _FORMATS[max(known, key=lambda dtype: known[dtype])] if known else otherwise


def _count(model: ModelSpec, tensors: Iterable[Tensor]) -> int:
    inside = _code_bits(model.precision.weights)
    experts = _code_bits(model.precision.of_experts)
    n_params = 0
    for tensor in tensors:
        if _SCALE.search(tensor.name) or _BUFFER.search(tensor.name):
            continue
        if model.has_tied_embeddings and re.search(r"(^|\.)(lm_head|head)\.weight$", tensor.name):
            continue
        bits = experts if ".experts." in tensor.name else inside
        if tensor.dtype in ("I32", "U8") and bits < 16:
            n_params += tensor.n_bytes * 8 // bits
        elif not tensor.dtype.startswith(("I", "U", "B")) or tensor.dtype in ("I8", "BF16"):
            n_params += tensor.numel
    return n_params


def _code_bits(name: str) -> int:
    """Whole bits of one packed weight: scales and zeros are tensors of their own."""
    from worthit.spec.formats import format_of

    found = format_of(name)
    return 4 if found.math == "int4" and found.bits >= 4 else math.floor(found.bits)
