"""Checkpoints out: a `Decoder` to a folder of `config.json` and safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from worthit.errors import SpecError, WorthitError
from worthit.nn.decoder import Decoder
from worthit.nn.quant import checkpoint as stored_form
from worthit.nn.weights.names import Rule, bind, names_of
from worthit.spec.checkpoint import INDEX, SINGLE
from worthit.spec.codec import to_json
from worthit.spec.hf import from_config, to_config
from worthit.spec.model import ModelSpec

MAX_SHARD_BYTES = 5 * 10**9


def save_model(
    model: Decoder,
    folder: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write `config.json` and safetensors files under their published names.

    With a Hugging Face config, `transformers` loads the folder too. It is the one given, the one
    that the model was loaded with, or one of the usual types that describes it. A model that none
    of them describes is written in worthit's own form, config and names; `load_model` reads both.

    Raises:
        SpecError: a config that describes another model.
        WorthitError: a model that `worthit.nn.inference.optimize` changed.
    """
    if model.is_optimized:
        raise WorthitError("a model laid out for inference cannot be saved; load it again")
    folder = Path(folder)
    if config is None:
        config = _fitting_config(model)
    elif not _describes(config, model.spec):
        raise SpecError(
            "config: describes another model than the one to write; give the one that belongs to "
            "it, or none"
        )
    folder.mkdir(parents=True, exist_ok=True)
    ours = tensors_of(model) if model.quantization is None else stored_form.tensors(model)
    # Codes and scales have no published names.
    is_published = config is not None and model.quantization is None
    rules = rules_of(model, config["model_type"] if config and is_published else None)
    shards = _shards(rules, ours, max_shard_bytes)
    names = [
        SINGLE if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        for i in range(1, len(shards) + 1)
    ]
    placed: dict[str, str] = {}
    for file, shard in zip(names, shards, strict=True):
        _write_shard(folder / file, shard, ours)
        placed |= {name: file for rule in shard for name in rule.theirs}
    for old in folder.glob("model*.safetensors"):
        if old.name not in names:
            old.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    if len(shards) > 1:
        n_bytes = sum(t.numel() * t.element_size() for t in ours.values())
        index = {"metadata": {"total_size": n_bytes}, "weight_map": placed}
        _write_json(folder / INDEX, index)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    written = _written_config(config, model.spec, dtype)
    if model.quantization is not None:
        written = {**written, "quantization_config": model.quantization}
    _write_json(folder / "config.json", written)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict(keep_vars=True))


def rules_of(
    model: Decoder, model_type: str | None, theirs: Iterable[str] | None = None
) -> list[Rule]:
    """The rules for `model` as a checkpoint of `model_type`; None is worthit's own form."""
    ours = tensors_of(model)
    if model_type is None:
        return [Rule.same(name) for name in ours]
    there = None if theirs is None else frozenset(theirs)
    names = names_of(replace(model.spec, model_type=model_type))
    return bind(names, ours, model.spec.n_layers, there)


def _shards(rules: list[Rule], ours: Mapping[str, Tensor], max_bytes: int) -> list[list[Rule]]:
    """The rules in order, as many a file as stay below `max_bytes`."""
    shards: list[list[Rule]] = [[]]
    held = 0
    for rule in rules:
        n_bytes = sum(ours[name].numel() * ours[name].element_size() for name in rule.ours)
        if shards[-1] and held + n_bytes > max_bytes:
            shards.append([])
            held = 0
        shards[-1].append(rule)
        held += n_bytes
    return shards


def _write_shard(path: Path, rules: list[Rule], ours: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for rule in rules:
        converted = rule.layout.to_theirs([ours[name].detach().cpu() for name in rule.ours])
        # Parts of one matrix share its memory, which the format does not allow.
        tensors |= {n: t.clone() for n, t in zip(rule.theirs, converted, strict=True)}
    # The file may be the one that these tensors are mapped from.
    partial = path.with_suffix(".partial")
    save_file({n: t.contiguous() for n, t in tensors.items()}, partial, metadata={"format": "pt"})
    partial.replace(path)


def _write_json(path: Path, data: object) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _fitting_config(model: Decoder) -> Mapping[str, Any] | None:
    """A Hugging Face config of `model`: its own while it is unchanged, or one that can say it."""
    source = model.source_config
    return source if source and _describes(source, model.spec) else to_config(model.spec)


def _describes(config: Mapping[str, Any], spec: ModelSpec) -> bool:
    said = from_config(config, where="config")
    # Formats and origins belong to files, not to the model.
    about_files = ("name", "model_type", "precision", "source")
    return replace(said, **{key: getattr(spec, key) for key in about_files}) == spec


def _written_config(
    config: Mapping[str, Any] | None, spec: ModelSpec, dtype: str
) -> Mapping[str, Any]:
    if config is None:
        written: Mapping[str, Any] = to_json(spec)
        return written
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    kept = {k: v for k, v in config.items() if k not in ("quantization_config", "torch_dtype")}
    return {**kept, key: dtype}
