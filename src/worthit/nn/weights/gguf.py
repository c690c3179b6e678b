"""Tensors of a `.gguf`: read from the file, quantized blocks unpacked; names are llama.cpp's.

Which of them is which of ours says `worthit.nn.weights.gguf_rules`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worthit.errors import MissingCapability, SpecError
from worthit.spec._gguf_header import Header, TensorInfo
from worthit.spec.model import ModelSpec, PositionScaling

_PLAIN = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def import_gguf() -> Any:
    """The `gguf` package.

    Raises:
        MissingCapability: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise MissingCapability(
            "reading the weights of a .gguf needs the extra 'torch'", "pip install 'worthit[torch]'"
        ) from None
    return gguf


@dataclass(frozen=True)
class GgufTensors:
    """The tensors of a file, or of all parts of a split one, by llama.cpp's names."""

    stored: Mapping[str, TensorInfo]

    @classmethod
    def of(cls, header: Header, where: str) -> GgufTensors:
        """Check that everything in `header` can be read.

        Raises:
            SpecError: tensors of a type that `gguf` does not dequantize, or numbers written with
                the highest byte first.
        """
        if header.order != "<":
            raise SpecError(f"{where}: its numbers are big-endian; convert it for this machine")
        readable = {kind: _is_readable(kind) for kind in {t.type for t in header.tensors}}
        problems = [
            f"{t.name}: tensor type {t.type} cannot be dequantized; take a file of another type, "
            "such as Q8_0 or Q4_K"
            for t in header.tensors
            if not readable[t.type]
        ]
        if problems:
            raise SpecError(*problems, context=where)
        return cls({t.name: t for t in header.tensors})

    def shape(self, name: str, wanted: Sequence[int] | None = None) -> tuple[int, ...]:
        """The shape of a tensor: `wanted` where the two differ in dimensions of 1 alone."""
        stored = self.stored[name].shape
        if wanted is None or [n for n in wanted if n != 1] != [n for n in stored if n != 1]:
            return stored
        return tuple(wanted)

    def read(self, name: str, shape: Sequence[int] | None = None) -> Tensor:
        """One tensor, dequantized to fp32 where it is stored in blocks.

        Args:
            shape: the same sizes with dimensions of 1 where the model has them.
        """
        info = self.stored[name]
        assert info.path is not None
        raw = np.memmap(info.path, np.uint8, "r", offset=info.offset, shape=(info.n_bytes,))
        wanted = info.shape if shape is None else tuple(shape)
        return _numbers(raw, info.type, info.shape).reshape(wanted)


def _numbers(raw: np.ndarray[Any, Any], kind: str, shape: tuple[int, ...]) -> Tensor:
    if kind in _PLAIN:
        return torch.from_numpy(np.array(raw.view(_PLAIN[kind])))
    if kind == "BF16":
        return torch.from_numpy(np.array(raw.view("<i2"))).view(torch.bfloat16)
    gguf = import_gguf()
    rows = raw.reshape(math.prod(shape[:-1]), -1)
    return torch.from_numpy(gguf.dequantize(rows, gguf.GGMLQuantizationType[kind]))


def _is_readable(kind: str) -> bool:
    if kind in _PLAIN or kind == "BF16":
        return True
    gguf = import_gguf()
    number = gguf.GGMLQuantizationType.__members__.get(kind)
    if number is None:
        return False
    _, block_bytes = gguf.GGML_QUANT_SIZES[number]
    try:
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), number)
    except NotImplementedError:
        return False
    return True


# --- rotary factors, which a file holds as tensors ----------------------------------------------


def with_rotary_factors(spec: ModelSpec, header: Header, tensors: GgufTensors) -> ModelSpec:
    """`spec` with the stretched positions whose factors the metadata leave out.

    Llama 3 files hold one factor a pair, `rope_freqs`; LongRoPE's two sets of factors.
    """
    scaling = spec.position.scaling
    one, long = "rope_freqs.weight", "rope_factors_long.weight"
    if one in tensors.stored:
        factors = _factors(tensors, one)
        scaling = PositionScaling(
            kind="longrope",
            factor=1.0,
            original_context_len=spec.context_len,
            attention_factor=1.0,
            short_factors=factors,
            long_factors=factors,
        )
    elif long in tensors.stored:
        architecture = header.metadata["general.architecture"]
        prefix = f"{architecture}.rope.scaling."
        known = header.metadata.get(prefix + "original_context_length", spec.context_len)
        scaling = PositionScaling(
            kind="longrope",
            factor=max(1.0, spec.context_len / known),
            original_context_len=known,
            attention_factor=header.metadata.get(prefix + "attn_factor"),
            short_factors=_factors(tensors, "rope_factors_short.weight"),
            long_factors=_factors(tensors, long),
        )
    return replace(spec, position=replace(spec.position, scaling=scaling))


def _factors(tensors: GgufTensors, name: str) -> tuple[float, ...]:
    if name not in tensors.stored:
        raise SpecError(f"{name}: missing beside the other rotary factors")
    return tuple(tensors.read(name).float().tolist())
