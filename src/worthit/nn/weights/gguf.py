"""Tensors of a `.gguf` as ours: llama.cpp's names, what its converter changed, quantized blocks.

A converted file holds the published tensors under other names, which the `gguf` package maps, and a
few of them rearranged, which `_UNDO` and the fused ones below put right. What stands between a
published tensor and ours is then the same as for safetensors: `worthit.nn.weights.names`.

| converter | here |
|---|---|
| rows of Llama's queries and keys go in pairs | `_halves`: channel i with i + d/2 |
| Gemma's norms are stored as 1 + weight | `ONE_MORE` |
| GPT-2's matrices are turned to (out, in) | `TRANSPOSED` |
| Mamba's A is stored as -exp(A_log) | `NEGATIVE_EXP` |
| experts are piled up, one tensor a projection | `_GATE_AND_VALUE` |
| query, key and value of NeoX and BLOOM stand one below another | `split` |
| dimensions of size 1 are dropped | `read` takes the shape that is wanted |
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worthit.errors import MissingCapability, SpecError
from worthit.nn.weights.names import (
    SAME,
    TRANSPOSED,
    Layout,
    Rule,
    bind,
    each,
    names_of,
    split,
)
from worthit.spec._gguf_header import Header, TensorInfo
from worthit.spec.model import Attention, ModelSpec, PositionScaling

# Architectures whose converter is understood, each proved by a test.
READ = (
    "llama",
    "qwen2",
    "qwen3",
    "qwen2moe",
    "qwen3moe",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "gptneox",
    "starcoder2",
    "stablelm",
    "olmo2",
    "olmoe",
    "mamba",
    "granite",
    "bloom",
    "command-r",
    "smollm3",
)
_PAIRED = ("llama", "granite", "smollm3")
_GEMMAS = ("gemma", "gemma2", "gemma3")
_FUSED = ("gptneox", "bloom")
_PLAIN = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
# Factors of rotary frequencies, which belong to the spec; tables that llama.cpp computes itself.
_NOT_WEIGHTS = re.compile(
    r"^rope_(freqs|factors_long|factors_short)\.weight$|\.rope_freqs\.weight$"
)


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


# --- tensors ------------------------------------------------------------------------------------


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


# --- what the converter changed -----------------------------------------------------------------


def _halves(n_heads: int) -> Layout:
    """Rows in pairs (0, d/2, 1, d/2 + 1, ...) within each head, as two halves."""
    return each(
        lambda t: t.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2),
        lambda t: t.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2),
    )


ONE_MORE = each(lambda t: t - 1, lambda t: t + 1)
NEGATIVE_EXP = each(lambda t: torch.log(-t), lambda t: -torch.exp(t))
# Gate and value of all experts, `(n_experts, d_ff, d_model)` each, as one pile.
_GATE_AND_VALUE = Layout(lambda ts: [torch.cat(list(ts), 1)], lambda ts: list(ts[0].chunk(2, 1)))


def _undo(architecture: str, spec: ModelSpec, published: str) -> Layout:
    """What turns a tensor of the file into the published one."""
    if architecture in _PAIRED:
        attention = spec.mixers[0]
        assert isinstance(attention, Attention)
        if ".q_proj." in published:
            return _halves(attention.n_heads)
        if ".k_proj." in published:
            return _halves(attention.n_kv_heads)
    if architecture in _GEMMAS and published.endswith("norm.weight"):
        return ONE_MORE
    if architecture == "gpt2" and re.search(r"\.c_(attn|proj|fc)\.weight$", published):
        return TRANSPOSED
    if published.endswith(".A_log"):
        return NEGATIVE_EXP
    return SAME


def rules(
    spec: ModelSpec, architecture: str, ours: Iterable[str], stored: Mapping[str, TensorInfo]
) -> list[Rule]:
    """The rules that fill the parameters `ours` from the tensors of a file.

    Raises:
        SpecError: an architecture whose converter is not understood.
    """
    if architecture not in READ:
        raise SpecError(
            f"weights of the GGUF architecture {architecture} are not read; give the checkpoint "
            "as safetensors"
        )
    gguf = import_gguf()
    number = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, spec.n_layers)

    def name_of(published: str) -> str:
        suffixes = (".weight", ".bias")
        found: str | None = names.get_name(published, try_suffixes=suffixes)
        # BLOOM's first checkpoints had no prefix.
        found = found or names.get_name(published.removeprefix("transformer."), suffixes)
        assert found is not None, f"{architecture}: no name for {published}"
        return found

    def translated(rule: Rule) -> Rule:
        special = _rearranged(rule.ours, spec, architecture, stored)
        if special is not None:
            return special
        undo = [_undo(architecture, spec, name) for name in rule.theirs]
        return Rule(
            rule.ours, tuple(name_of(n) for n in rule.theirs), _one_each(undo).then(rule.layout)
        )

    return [translated(rule) for rule in bind(names_of(spec), list(ours), spec.n_layers)]


def _one_each(layouts: Sequence[Layout]) -> Layout:
    """The i-th layout on the i-th tensor."""

    def to_ours(theirs: Sequence[Tensor]) -> list[Tensor]:
        return [a.to_ours([t])[0] for a, t in zip(layouts, theirs, strict=True)]

    def to_theirs(ours: Sequence[Tensor]) -> list[Tensor]:
        return [a.to_theirs([t])[0] for a, t in zip(layouts, ours, strict=True)]

    return Layout(to_ours, to_theirs)


def _rearranged(
    ours: tuple[str, ...], spec: ModelSpec, architecture: str, stored: Mapping[str, TensorInfo]
) -> Rule | None:
    """Parameters whose tensors the file holds in another number than published."""
    match = re.match(r"layers\.(\d+)\.(.+)", ours[0])
    if match is None:
        return None
    block, part = f"blk.{match[1]}.", match[2]
    if part == "ffn.experts.up":
        both = block + "ffn_gate_up_exps.weight"
        if both in stored:
            return Rule(ours, (both,))
        theirs = (block + "ffn_gate_exps.weight", block + "ffn_up_exps.weight")
        return Rule(ours, theirs, _GATE_AND_VALUE)
    if part == "ffn.experts.down":
        return Rule(ours, (block + "ffn_down_exps.weight",))
    if architecture in _FUSED and part.startswith("mixers.0.q_proj."):
        attention = spec.mixers[0]
        assert isinstance(attention, Attention)
        width = attention.n_heads * attention.head_dim
        leaf = part.rpartition(".")[2]
        return Rule(ours, (f"{block}attn_qkv.{leaf}",), split(width, width, width))
    if architecture == "stablelm" and ".qk_norm." in part:
        letter = part.split(".")[3][0]
        return Rule(ours, (f"{block}attn_{letter}_norm.weight",))
    return None


def is_weight(name: str) -> bool:
    """Whether the tensor of that name is a parameter of a model."""
    return not _NOT_WEIGHTS.search(name)


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
