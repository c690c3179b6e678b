"""The checkpoints that take part in a merge, by their headers: names, shapes, layers, vocabulary.

Nothing here reads a weight. A checkpoint of any architecture will do: its layers are found by the
numbers in its tensors' names, and `config.json` says how many there should be.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from worthit.errors import InputError, MissingCapability, SpecError
from worthit.merge.adapter import Adapter, open_adapter
from worthit.merge.files import AdaptedRows, FileRows, Files
from worthit.spec.checkpoint import Tensor, is_embedding, read_tensors
from worthit.spec.resolve import find_config, read_json

# How configs name the number of layers.
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
FLOATS = ("F64", "F32", "F16", "BF16")
_INDEX = re.compile(r"\.(\d+)\.")
_POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings)\.")
_HEAD_BIAS = re.compile(r"(^|\.)(lm_head|embed_out)\.bias$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One checkpoint of a merge.

    Attributes:
        name: as the recipe has it.
        folder: of its files.
        config: its `config.json`.
        tensors: by name.
        stack: what the names of its layers begin with, such as `model.layers`.
        n_layers: in that stack.
        adapter: added to the weights when they are read.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)
    stack: str
    n_layers: int
    adapter: Adapter | None = None

    @property
    def vocab_size(self) -> int | None:
        """Rows of the embedding that the config states."""
        size = text_config(self.config).get("vocab_size")
        return size if isinstance(size, int) else None

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding, and so may be missing."""
        return not any(_HEAD.search(name) for name in self.tensors)

    @property
    def embedding(self) -> Tensor | None:
        """The input table."""
        return next(
            (t for n, t in self.tensors.items() if is_vocabulary(n) and not is_head(n)), None
        )


def open_member(name: str, folder: Path) -> Member:
    """Read the headers of the checkpoint that a recipe calls `name`.

    Args:
        name: a folder, absolute or seen from the recipe's folder or from here; or a hub id in the
            local cache; `+adapter` behind either.
        folder: of the recipe.

    Raises:
        InputError: it is not there, or has no weights that can be read.
    """
    model, plus, adapter = name.partition("+")
    home = _find(model, folder)
    config = read_json(home / "config.json")
    if not isinstance(config, dict):
        raise SpecError(f"{home / 'config.json'}: expected an object")
    found = read_tensors(home)
    if not found:
        ggufs = sorted(home.glob("*.gguf"))
        what = f"; {ggufs[0].name} holds them quantized: save them first" if ggufs else ""
        raise SpecError(f"{home}: no weights in safetensors files{what}")
    tensors = {t.name: t for t in found}
    stack, n_layers = _stack(tensors, config)
    opened = open_adapter(_find_folder(adapter, folder), tensors) if plus else None
    return Member(
        name=name,
        folder=home,
        config=config,
        tensors=tensors,
        stack=stack,
        n_layers=n_layers,
        adapter=opened,
    )


def _find(model: str, folder: Path) -> Path:
    found = _local(model, folder)
    if found is not None:
        if found.suffix == ".gguf":
            raise SpecError(f"{model}: a .gguf is quantized; merge the weights that it was made of")
        if not (found / "config.json").is_file():
            raise SpecError(f"{model}: no config.json in this folder")
        return found
    try:
        return find_config(model).parent
    except MissingCapability as missing:
        # One of several things that may be wrong with a recipe, and told among them.
        raise SpecError(f"{missing.what}; get it with: {missing.command}") from None


def _find_folder(name: str, folder: Path) -> Path:
    found = _local(name, folder)
    if found is None or not found.is_dir():
        raise SpecError(f"{name}: no such folder")
    return found


def _local(name: str, folder: Path) -> Path | None:
    """A path as the recipe means it: from the recipe's own folder, or from here."""
    path = Path(name).expanduser()
    candidates = [path] if path.is_absolute() else [folder / path, path]
    try:
        return next((c for c in candidates if c.exists()), None)
    except OSError:  # longer than a file's name can be
        return None


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a composite's config that is about its language model."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def layer_key(config: Mapping[str, Any]) -> str | None:
    """What the config calls its number of layers."""
    return next((key for key in LAYER_KEYS if type(config.get(key)) is int), None)


def split_name(name: str) -> tuple[str, int, str] | None:
    """The stack, the layer and the rest of a tensor's name; None outside the layers.

    >>> split_name("model.layers.3.mlp.experts.0.w1.weight")
    ('model.layers', 3, 'mlp.experts.0.w1.weight')
    >>> split_name("lm_head.weight")
    """
    match = _INDEX.search(name)
    return None if match is None else (name[: match.start()], int(match[1]), name[match.end() :])


def is_vocabulary(name: str) -> bool:
    """Whether the first axis of a tensor counts tokens.

    >>> [is_vocabulary(n) for n in ("lm_head.weight", "wte.weight", "wpe.weight", "norm.weight")]
    [True, True, False, False]
    """
    is_table = is_embedding(name) and not _POSITIONS.search(name)
    return split_name(name) is None and (is_table or _HEAD_BIAS.search(name) is not None)


def is_head(name: str) -> bool:
    """Whether a tensor is the output head."""
    return _HEAD.search(name) is not None


def is_before(name: str) -> bool:
    """Whether a tensor outside the layers is used before them: the embeddings are."""
    return ("embed" in name or "wte." in name or "wpe." in name) and not name.startswith(
        "embed_out"
    )


def _stack(tensors: Iterable[str], config: Mapping[str, Any]) -> tuple[str, int]:
    """The layers of the language model: the numbered stack that the config speaks of."""
    depth: dict[str, int] = {}
    size: Counter[str] = Counter()
    for name in tensors:
        if (parts := split_name(name)) is not None:
            depth[parts[0]] = max(depth.get(parts[0], 0), parts[1] + 1)
            size[parts[0]] += 1
    if not depth:
        return "", 0
    text = text_config(config)
    key = layer_key(text)
    stated = None if key is None else text[key]
    best = max(depth, key=lambda prefix: (depth[prefix] == stated, size[prefix]))
    return best, depth[best]


def check_alike(members: Iterable[Member]) -> tuple[list[str], list[str]]:
    """What the configs of checkpoints say that makes merging them wrong, and what is odd.

    Returns:
        Problems and warnings, each naming the key and both values.
    """
    first, *others = members
    problems, warnings = [], []
    one = text_config(first.config)
    for other in others:
        two = text_config(other.config)
        for key in (*FATAL, *ODD):
            a, b = one.get(key), two.get(key)
            if a == b or (key not in FATAL and (a is None or b is None)):
                continue
            text = f"{key}: {a!r} in {first.name}, {b!r} in {other.name}"
            if key in FATAL:
                problems.append(f"{text}; their weights mean different things")
            else:
                warnings.append(f"{text}; the output keeps that of {first.name}")
    return problems, warnings


# Where these differ, equal shapes are an accident.
FATAL = ("model_type", "num_attention_heads", "n_head", "num_key_value_heads", "head_dim")
ODD = (
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "rms_norm_eps",
    "layer_norm_epsilon",
    "layer_norm_eps",
    "sliding_window",
    "num_experts_per_tok",
)


def open_rows(
    member: Member,
    files: Files,
    stored: Tensor,
    *,
    dtype: torch.dtype | None = None,
    wide: torch.dtype = torch.float32,
) -> FileRows:
    """The rows of one of a checkpoint's tensors, with its adapter's share added; see `FileRows`."""
    update = None if member.adapter is None else member.adapter.updates.get(stored.name)
    if update is None:
        return FileRows(files, stored, where=member.name, dtype=dtype, wide=wide)
    return AdaptedRows(
        files,
        stored,
        down=update.down,
        up=update.up,
        factor=update.factor,
        is_transposed=update.is_transposed,
        where=member.name,
        dtype=dtype,
        wide=wide,
    )


def check_mergeable(member: Member) -> list[str]:
    """What of a checkpoint's weights no arithmetic can be done on."""
    if "quantization_config" in member.config:
        return [
            f"{member.name}: its weights are quantized (quantization_config); merge the weights "
            "that they were made of, and quantize the result"
        ]
    return []


def messages(error: InputError) -> Iterator[str]:
    """What an error says, one problem at a time, to be told among others."""
    for message in error.problems:
        yield f"{error.context}: {message}" if error.context else message
