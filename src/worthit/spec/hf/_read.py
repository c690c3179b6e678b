"""Dispatch on `model_type`; composites are read through their `text_config`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from worthit.errors import SpecError, unknown_name
from worthit.spec.hf._fields import Fields
from worthit.spec.hf._precision import precision
from worthit.spec.model import ModelSpec

Reader = Callable[[Fields], ModelSpec]

# Which file reads which model type: names only, so that reading one model imports one file.
FAMILIES: dict[str, tuple[str, ...]] = {
    "llama": ("llama", "mistral", "mixtral", "smollm3", "granite", "phi3", "stablelm"),
    "qwen": ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe"),
    "qwen_next": ("qwen3_next",),
    "gemma": ("gemma", "gemma2", "gemma3_text"),
    "gpt": ("gpt2", "gpt_neox", "gpt_oss", "opt", "bloom", "starcoder2"),
    "olmo": ("olmo2", "olmoe", "cohere"),
    "deepseek": ("deepseek_v2", "deepseek_v3"),
    "llama4": ("llama4_text",),
    "mamba": ("mamba", "mamba2", "falcon_mamba"),
    "hybrid": ("jamba", "bamba", "granitemoehybrid", "falcon_h1", "nemotron_h"),
    "rwkv": ("rwkv",),
}
# What a composite says once for all of its parts.
_INHERITED = ("torch_dtype", "dtype", "quantization_config", "tie_word_embeddings")


def known_model_types() -> tuple[str, ...]:
    """Every model type that can be read, sorted."""
    return tuple(sorted(name for names in FAMILIES.values() for name in names))


def from_config(
    config: Mapping[str, Any], *, name: str = "", where: str = "config.json"
) -> ModelSpec:
    """Read a Hugging Face config.

    Args:
        config: the parsed `config.json`; a composite's `text_config` is read in its place.
        name: what to call the model; its type where empty.
        where: the file, named in errors.

    Raises:
        UnknownName: a model type that is not read; the nearest are suggested.
        SpecError: every missing, malformed or not understood field at once.
    """
    if not isinstance(config, Mapping):
        raise SpecError(f"must hold a JSON object, got {type(config).__name__}", context=where)
    model_type = config.get("model_type")
    text = config.get("text_config")
    if isinstance(text, Mapping) and model_type not in known_model_types():
        return _from_text_config(config, text, name=name, where=where)
    if not isinstance(model_type, str):
        raise SpecError(f"model_type: missing or not text, got {model_type!r}", context=where)
    return _read(config, model_type, name=name or model_type, where=where)


def _from_text_config(
    config: Mapping[str, Any], text: Mapping[str, Any], *, name: str, where: str
) -> ModelSpec:
    """Read the language model of a composite: vision towers and projectors are not counted."""
    where = f"{where}: text_config"
    model_type = text.get("model_type")
    if not isinstance(model_type, str):
        raise SpecError(f"model_type: missing or not text, got {model_type!r}", context=where)
    inherited = {key: config[key] for key in _INHERITED if config.get(key) is not None}
    # Files of composites leave out of `text_config` whatever equals its type's defaults.
    defaults = getattr(_family(model_type, where), "TEXT_DEFAULTS", {}).get(model_type, {})
    merged = {**defaults, **inherited, **text}
    return _read(merged, model_type, name=name or str(config.get("model_type", "")), where=where)


def _read(config: Mapping[str, Any], model_type: str, *, name: str, where: str) -> ModelSpec:
    readers: dict[str, Reader] = _family(model_type, where).READERS
    fields = Fields(config, where=where)
    model = readers[model_type](fields)
    formats = precision(fields)
    fields.finish()
    return replace(model, name=name, model_type=model_type, precision=formats)


def _family(model_type: str, where: str) -> Any:
    for family, types in FAMILIES.items():
        if model_type in types:
            return importlib.import_module(f"worthit.spec.hf.{family}")
    raise unknown_name(
        "model type",
        model_type,
        known_model_types(),
        see="docs/models.md (worthit cost --trace counts any other with transformers)",
    ).within(where)
