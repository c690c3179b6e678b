"""A model in a `.gguf` file, by its header: metadata and the tensors' names, types and shapes.

The metadata are put back into the Hugging Face config that they were converted from, and that is
read as any other: one path, one set of rules. What metadata leave out (vocabulary, biases, a tied
head, the kinds of layers) the tensors say, and in the end their number is checked against the
model's. No weights are read, and no library that would.

Source:
    The GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; metadata as
    written by llama.cpp's converters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worthit.errors import SpecError, unknown_name
from worthit.spec._gguf_config import TRANSFORMERS
from worthit.spec._gguf_header import Header, TensorInfo, read_header
from worthit.spec._gguf_hybrid import HYBRIDS
from worthit.spec._gguf_model import GgufModel
from worthit.spec._tensors import mismatch
from worthit.spec.formats import format_of
from worthit.spec.model import Attention, FeedForward, Ffn, Mixer, ModelSpec, Precision

CONFIGS = {**TRANSFORMERS, **HYBRIDS}
REFUSED = dict.fromkeys(
    ("rwkv6", "rwkv7", "rwkv6qwen2", "arwkv7"),
    "its layers are of a later RWKV than the version 4 that is understood",
)
# Types as the formats that hold as many bits; the others go by their own name.
_FORMATS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "Q4_0": "int4-g32", "Q8_0": "int8-g32"}
# A file of several types is judged as its most common one; beyond this it is said how far off.
MIXTURE_TOLERANCE = 0.03
# Tables and buffers that are no parameters: rotary factors, a router's balancing bias, scales.
_BUFFER = re.compile(
    r"^rope_(freqs|factors_long|factors_short)\.weight$|\.exp_probs_b(\.bias)?$|\.(input_)?scale$"
)
_LAYER = re.compile(r"^blk\.(\d+)\.")
_SPLIT = re.compile(r"^(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """A model, and what its file says of itself; `n_params` as the model counts them.

    `config` is the Hugging Face config that the metadata were put back into.
    """

    model: ModelSpec
    config: dict[str, Any]
    header: Header
    architecture: str
    n_tensors: int
    n_params: int
    bytes_by_type: dict[str, int]
    warnings: tuple[str, ...] = ()


def read_gguf(path: Path) -> GgufFile:
    """Read a `.gguf`, all parts of a split one together.

    Raises:
        SpecError: a file that is cut off, damaged, or describes a model that is not understood.
        UnknownName: an architecture that is not read; the nearest are suggested.
    """
    return read_model(_whole(path, read_header(path)), path)


def read_model(header: Header, path: Path) -> GgufFile:
    """The model that a header describes; `path` names it."""
    from worthit.spec.hf import from_config

    file = GgufModel(header, where=str(path))
    architecture = file.architecture
    if architecture in REFUSED:
        raise SpecError(f"{path}: architecture {architecture}: {REFUSED[architecture]}")
    if architecture not in CONFIGS:
        raise unknown_name("GGUF architecture", architecture, CONFIGS).within(str(path))
    config = CONFIGS[architecture](file)
    file.finish()
    model = from_config(config, name=path.stem, where=f"{path}: metadata as config")
    model = _biases(model, file)
    tensors = [t for t in header.tensors if _is_counted(t, file, model.n_layers)]
    n_params = sum(t.numel for t in tensors)
    formats, warnings = _precision(header.tensors)
    by_type: Counter[str] = Counter()
    for tensor in header.tensors:
        by_type[tensor.type] += tensor.n_bytes
    model = replace(model, precision=formats, source=str(path))
    return GgufFile(
        model=model,
        config=config,
        header=header,
        architecture=architecture,
        n_tensors=len(header.tensors),
        n_params=n_params,
        bytes_by_type=dict(by_type.most_common()),
        warnings=(*file.warnings(), *warnings, *mismatch(model, n_params)),
    )


def _whole(path: Path, header: Header) -> Header:
    """The header with the tensors of all parts, where a model is split over several files."""
    count = header.metadata.get("split.count", 0)
    if not isinstance(count, int) or count < 2:
        return header
    match = _SPLIT.match(path.name)
    if match is None or int(match["count"]) != count:
        raise SpecError(f"{path}: one of {count} parts; keep the names that end in -00001-of-...")
    parts = [
        path.with_name(f"{match['stem']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)
    ]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise SpecError(f"{path}: one of {count} parts, not here: {', '.join(missing[:3])}")
    headers = [read_header(part) for part in parts]
    return Header(
        version=header.version,
        metadata=headers[0].metadata,
        tensors=tuple(tensor for part in headers for tensor in part.tensors),
        order=header.order,
    )


def _biases(model: ModelSpec, file: GgufModel) -> ModelSpec:
    """The model with the biases of attention and dense feed-forwards that the tensors show."""
    has_qkv = file.has("attn_q.bias") or file.has("attn_qkv.bias")
    has_out = file.has("attn_output.bias")
    has_ffn = file.has("ffn_up.bias") or file.has("ffn_down.bias")

    def attention(mixer: Mixer) -> Mixer:
        if not isinstance(mixer, Attention):
            return mixer
        return replace(mixer, has_qkv_bias=has_qkv, has_out_bias=has_out)

    def feed_forward(ffn: Ffn) -> Ffn:
        return replace(ffn, has_bias=has_ffn) if isinstance(ffn, FeedForward) else ffn

    return model.map_mixers(attention).map_ffns(feed_forward)


def _is_counted(tensor: TensorInfo, file: GgufModel, n_layers: int) -> bool:
    if _BUFFER.search(tensor.name):
        return False
    layer = _LAYER.match(tensor.name)
    if layer is not None and int(layer[1]) >= n_layers:  # predicts further tokens
        return False
    # Latent attention's up-projection, once more in two halves for absorbed decoding.
    halves = tensor.name.endswith((".attn_k_b.weight", ".attn_v_b.weight"))
    return not (halves and file.has("attn_kv_b.weight"))


def _precision(tensors: Sequence[TensorInfo]) -> tuple[Precision, list[str]]:
    matrices = [t for t in tensors if len(t.shape) > 1 and not _BUFFER.search(t.name)]
    tables = [t for t in matrices if not _LAYER.match(t.name)]
    routed = [t for t in matrices if "_exps." in t.name]
    inside = [t for t in matrices if _LAYER.match(t.name) and "_exps." not in t.name]
    weights, embeddings = _common(inside, "F16"), _common(tables, "F16")
    experts = _common(routed, "F16") if routed else weights
    plain = weights if weights in ("fp32", "bf16") else "fp16"
    formats = Precision(
        weights=weights,
        experts=experts if experts != weights else None,
        embeddings=embeddings,
        activations=plain,
        cache=plain,
    )
    stored = sum(t.n_bytes for t in matrices)
    kinds = ((inside, weights), (routed, experts), (tables, embeddings))
    judged = sum(t.numel * format_of(kind).bytes for tensors, kind in kinds for t in tensors)
    if abs(stored - judged) <= MIXTURE_TOLERANCE * stored:
        return formats, []
    return formats, [
        f"the file mixes types and takes {stored / 1e9:.4g} GB; it is judged as {weights} inside "
        f"and {embeddings} outside the layers, {judged / 1e9:.4g} GB"
    ]


def _common(tensors: Iterable[TensorInfo], otherwise: str) -> str:
    """The format of the type that holds the most elements."""
    counts: Counter[str] = Counter({otherwise: 0})
    for tensor in tensors:
        counts[tensor.type] += tensor.numel
    name = max(counts, key=lambda kind: counts[kind])
    return _FORMATS.get(name, name.lower())
