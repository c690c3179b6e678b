"""Checkpoints in: a folder of `config.json` and safetensors, or a `.gguf`, to a `Decoder`.

The decoder is built without memory, every tensor is checked by the files' headers before any is
read, and then each is read, laid out as ours and put in place: nothing is held twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worthit.errors import SpecError, unknown_name
from worthit.nn.decoder import Decoder, build
from worthit.nn.quant import checkpoint as stored_form
from worthit.nn.quant import ggml
from worthit.nn.save import rules_of, save_model, tensors_of
from worthit.nn.weights import quantized
from worthit.nn.weights.misfits import misfits, named
from worthit.nn.weights.names import BUFFERS, Names, Rule, names_of, shapes
from worthit.spec.checkpoint import read_checkpoint, read_tensors
from worthit.spec.extension import Extension, extended, parse_extension
from worthit.spec.model import ModelSpec
from worthit.spec.resolve import find_weights, read_json, resolve

__all__ = ["DTYPES", "checkpoint_path", "load_model", "packing_pays", "save_model"]

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "fp64": torch.float64,
}
_PLAIN = ("F64", "F32", "F16", "BF16")
# What writers of composites put in front of the language model's names, longest first.
_TEXT_PREFIXES = ("model.language_model.", "language_model.")


def load_model(
    source: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    packed: bool | None = None,
    rope: str | None = None,
) -> Decoder:
    """The model whose weights are in `source`, ready for `model(input_ids)`.

    Args:
        source: a folder of a `config.json` and safetensors files, a `.gguf` or a folder of one, or
            a hub id in the local cache.
        dtype: of the parameters, `"fp32"`, `"bf16"` or `"fp16"`; None keeps what is stored. Where
            that is quantized, None is fp32 for a `.gguf` and the model's own 16 bits otherwise.
        device: where to put them.
        packed: keep matrices that are stored in few bits so, where `worthit.nn.quant` has their
            format, or widen them all; None keeps those of `worthit quantize` and widens others.
        rope: stretch the context, as `yarn:4` does: see `worthit.spec.extension`.

    Raises:
        SpecError: files that are damaged, or whose tensors are not those of the model that the
            config describes: every missing, unexpected and mis-shaped one by name.
        InputError: a `rope` that is none, or that this model does not take.
        UnknownName: a model type, or a name, that is not known.
        MissingCapability: a hub id that is not in the local cache.
    """
    path = checkpoint_path(source)
    extension = None if rope is None else parse_extension(rope)
    load = _load_gguf if path.is_file() else _load_folder
    model = load(path, dtype, device, packed, extension)
    model.source = str(path)
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    assert not left, f"not filled: {left}"
    model.eval()
    return model


def packing_pays(source: str | Path, dtype: str | None = None) -> bool:
    """Whether `load_model(source, packed=True)` gives what decodes fastest on this machine."""
    path = checkpoint_path(source)
    if not path.is_file():
        return stored_form.quantization_of(read_json(path / "config.json")) is not None
    from worthit.spec._gguf_header import read_header

    return ggml.pays({t.name: t for t in read_header(path).tensors}, dtype)


def _load_folder(
    folder: Path,
    dtype: str | torch.dtype | None,
    device: str | torch.device,
    packed: bool | None,
    extension: Extension | None,
) -> Decoder:
    checkpoint = read_checkpoint(folder)
    if not checkpoint.n_tensors:
        raise SpecError(f"{folder}: holds a config and no weights (*.safetensors)")
    spec = checkpoint.model if extension is None else extended(checkpoint.model, extension)
    config = read_json(folder / "config.json")
    quantization = stored_form.quantization_of(config)
    if quantization is not None:
        model = _load_stored(folder, spec, config, quantization, dtype, device)
        return stored_form.unpack(model) if packed is False else model
    if packed:
        raise SpecError(
            f"{folder}: its weights are not packed; `worthit quantize` packs them into a new folder"
        )
    _refuse_quantized(spec, folder)
    stored = spec.precision.weights
    # What is quantized is unpacked to what the model computes in.
    wanted = _dtype(dtype or (stored if stored in DTYPES else spec.precision.activations))
    with torch.device("meta"):
        model = build(spec)
    model.source_config = _text_config(config)
    with ExitStack() as stack:
        files = FolderFiles(folder, stack, is_composite="text_config" in config)
        rules = _matching_rules(model, files, folder)
        fill(model, rules, files.read, wanted, device)
    return model


def _load_stored(
    folder: Path,
    spec: ModelSpec,
    config: Mapping[str, Any],
    quantization: dict[str, Any],
    dtype: str | torch.dtype | None,
    device: str | torch.device,
) -> Decoder:
    """A model that `worthit quantize` wrote."""
    stored_form.check(quantization, f"{folder / 'config.json'}: quantization_config")
    with torch.device("meta"):
        model = build(spec)
    model.source_config = _text_config(config)
    model.quantization = quantization
    with ExitStack() as stack:
        files = FolderFiles(folder, stack, is_composite=False)
        problems = stored_form.prepare(model, quantization, files.stored)
        expected = {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}
        found = {name: tensor.shape for name, tensor in files.stored.items()}
        extra = [name for name in found if name not in expected]
        problems += [*misfits(expected, found), *named(extra, "not a tensor of this model")]
        if problems:
            raise SpecError(*problems, context=str(folder))
        wanted = _dtype(dtype or spec.precision.activations)
        stored_form.fill(model, files.read, wanted, device)
    return model


def _load_gguf(
    path: Path,
    dtype: str | torch.dtype | None,
    device: str | torch.device,
    packed: bool | None,
    extension: Extension | None,
) -> Decoder:
    from worthit.nn.weights import gguf, gguf_rules
    from worthit.spec.gguf import read_gguf

    file = read_gguf(path)
    tensors = gguf.GgufTensors.of(file.header, str(path))
    spec = gguf.with_rotary_factors(file.model, file.header, tensors)
    spec = spec if extension is None else extended(spec, extension)
    stored = spec.precision.weights
    usual = "bf16" if packed else "fp32"
    wanted = _dtype(dtype or (stored if stored in DTYPES else usual))
    with torch.device("meta"):
        model = build(spec)
    model.source_config = file.config
    ours = tensors_of(model)
    rules = gguf_rules.rules(spec, file.architecture, ours, tensors.stored)
    expected = shapes(rules, ours)
    found = {name: tensors.shape(name, expected.get(name)) for name in tensors.stored}
    extra = [name for name in found if gguf_rules.is_extra(name, spec.n_layers, expected)]
    problems = [*misfits(expected, found), *named(extra, "not a tensor of this model")]
    if problems:
        raise SpecError(*problems, context=str(path))
    if packed:
        rules = ggml.keep(model, rules, tensors.stored, wanted, device)
        if model.quantization is None:
            kinds = ", ".join(sorted({t.type for t in tensors.stored.values()}))
            known = ", ".join(ggml.GRID_OF)
            raise SpecError(f"{path}: nothing in it can stay packed: {known} can, it has {kinds}")
    fill(model, rules, lambda name: tensors.read(name, expected[name]), wanted, device)
    return model


def fill(
    model: nn.Module,
    rules: Iterable[Rule],
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    device: str | torch.device,
) -> None:
    """Put what `rules` name into a module without memory; `read` gives a file's tensor."""
    for rule in rules:
        ours = rule.layout.to_ours([read(name) for name in rule.theirs])
        for name, tensor in zip(rule.ours, ours, strict=True):
            _put(model, name, tensor, dtype, device)


# --- what is where ------------------------------------------------------------------------------


def checkpoint_path(source: str | Path) -> Path:
    """The folder of safetensors, or the `.gguf`, that `source` leads to.

    Raises:
        InputError: `source` names no model, or one without weights.
        MissingCapability: a hub id that is not in the local cache.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        text = str(source)
        # Says what is wrong with everything that names no model at all.
        resolve(text)
        found = path if path.is_file() else find_weights(text)
        if found is None or found.suffix in (".json", ".toml"):
            raise SpecError(
                f"{text}: describes a model and holds no weights; give a checkpoint folder or a "
                ".gguf"
            )
        path = found
    if path.is_dir() and not (path / "config.json").is_file():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
        if len(files) == 1:
            return files[0]
    return path


def _refuse_quantized(spec: ModelSpec, folder: Path) -> None:
    formats = {spec.precision.weights, spec.precision.of_experts} - {*DTYPES, *quantized.READ}
    if formats:
        raise SpecError(
            f"{folder}: weights are stored as {', '.join(sorted(formats))}, and of safetensors "
            f"only fp32, fp16, bf16, {' and '.join(quantized.READ)} are read; convert them first"
        )


def _dtype(wanted: str | torch.dtype) -> torch.dtype:
    if isinstance(wanted, torch.dtype):
        return wanted
    if wanted not in DTYPES:
        raise unknown_name("dtype", wanted, DTYPES)
    return DTYPES[wanted]


class FolderFiles:
    """The tensors of a folder under the names that a model of text alone would have.

    `stored` has what each name's header says; `read` reads one.
    """

    def __init__(self, folder: Path, stack: ExitStack, *, is_composite: bool) -> None:
        from safetensors import safe_open

        headers = read_tensors(folder)
        self._handles = {}
        for path in sorted(folder.glob("*.safetensors")):
            handle = stack.enter_context(safe_open(path, framework="pt"))
            self._handles.update(dict.fromkeys(handle.keys(), handle))
        self.file_names = {t.name: t.name for t in headers}
        if is_composite:
            self.file_names = dict(_language_model(self.file_names))
        by_file_name = {t.name: t for t in headers}
        self._in_files = {name: by_file_name[at] for name, at in self.file_names.items()}
        self.stored = quantized.as_plain(self._in_files)

    def add_base(self, base: str, embedding: str) -> None:
        """Put `base` in front of the names where a model without its head was written."""
        if embedding in self.stored or embedding.removeprefix(base) not in self.stored:
            return

        def full(name: str) -> str:
            return name if name.startswith(("lm_head.", "embed_out.", base)) else base + name

        self.file_names = {full(name): stored for name, stored in self.file_names.items()}
        self._in_files = {full(name): tensor for name, tensor in self._in_files.items()}
        self.stored = quantized.as_plain(self._in_files)

    def read(self, name: str) -> Tensor:
        """One tensor, from the file; unpacked where it is quantized."""
        return quantized.read_plain(name, self._in_files, self._read)

    def _read(self, name: str) -> Tensor:
        stored = self.file_names[name]
        tensor: Tensor = self._handles[stored].get_tensor(stored)
        return tensor


def _language_model(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    """The language model's tensors of a composite; what belongs to other senses is left out."""
    for name in names:
        prefix = next((p for p in _TEXT_PREFIXES if name.startswith(p)), None)
        if prefix is not None:
            rest = name.removeprefix(prefix)
            yield rest if rest.startswith(("model.", "lm_head.")) else f"model.{rest}", name
        elif name.startswith("lm_head."):
            yield name, name


# --- does it fit --------------------------------------------------------------------------------


def _matching_rules(model: Decoder, files: FolderFiles, folder: Path) -> list[Rule]:
    """The rules that fill `model` from `files`, or everything that is in the way."""
    is_published = model.source_config is not None
    names = names_of(model.spec) if is_published else Names(())
    if is_published:
        files.add_base(names.base, _of(names, "embedding")[0])
    rules = rules_of(model, model.spec.model_type if is_published else None, files.stored)
    expected = shapes(rules, tensors_of(model))
    found = {name: tensor.shape for name, tensor in files.stored.items()}
    tied = _of(names, "head") if model.head is None else ()
    ignored = [BUFFERS, *(re.compile(pattern) for pattern in names.ignored)]
    extra = [
        name
        for name in found
        if name not in expected and name not in tied and not any(p.search(name) for p in ignored)
    ]
    problems = [
        *misfits(expected, found),
        *named(extra, "not a tensor of this model"),
        *(
            line
            for dtype in sorted({t.dtype for t in files.stored.values()} - set(_PLAIN))
            for line in named(
                (n for n in expected if n in found and files.stored[n].dtype == dtype),
                f"expected one of {', '.join(_PLAIN)}, got {dtype}",
            )
        ),
    ]
    if not problems:
        problems = _untied(tied, names, files)
    if problems:
        raise SpecError(*problems, context=str(folder))
    return rules


def _of(names: Names, ours: str) -> tuple[str, ...]:
    """Everything that files call our module `ours`."""
    theirs = [entry.theirs for entry in names.entries if entry.ours == ours]
    return tuple(f"{name}.weight" for name in theirs if isinstance(name, str))


def _untied(tied: Iterable[str], names: Names, files: FolderFiles) -> list[str]:
    """Heads that a file holds beside the embedding that they should be."""
    embedding = next((n for n in _of(names, "embedding") if n in files.stored), None)
    copies = [name for name in tied if name in files.stored]
    return [
        f"{name}: differs from {embedding}, and the config says that they are one "
        "(tie_word_embeddings); set it to false"
        for name in copies
        if embedding is None or not torch.equal(files.read(name), files.read(embedding))
    ]


def _text_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config of the language model; None for worthit's own form."""
    if "layers" in config and "d_model" in config:
        return None
    text = config.get("text_config")
    if not isinstance(text, dict):
        return dict(config)
    shared = ("torch_dtype", "dtype", "tie_word_embeddings")
    return {**{key: config[key] for key in shared if key in config}, **text}


def _put(
    model: nn.Module, name: str, tensor: Tensor, dtype: torch.dtype, device: str | torch.device
) -> None:
    """Replace a tensor without memory by a real one; buffers keep the precision they have."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    old = getattr(module, leaf)
    if isinstance(old, nn.Parameter):
        new = tensor.to(device=device, dtype=dtype).contiguous()
        module.register_parameter(leaf, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        module.register_buffer(leaf, tensor.to(device=device, dtype=old.dtype).contiguous())
