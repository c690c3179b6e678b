"""Dispatch on `model_type`, and what every family shares: precision, rotary scaling, composites."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from worthit.errors import SpecError, unknown_name
from worthit.spec.hf._fields import Fields
from worthit.spec.model import ModelSpec

Reader = Callable[[Fields], ModelSpec]

# Which file reads which model type: names only, so that reading one model imports one file.
FAMILIES: dict[str, tuple[str, ...]] = {
    "llama": ("llama", "mistral", "mixtral", "smollm3", "granite", "phi3", "stablelm"),
    "qwen": ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "qwen3_next"),
    "gemma": ("gemma", "gemma2", "gemma3_text"),
    "gpt": ("gpt2", "gpt_neox", "gpt_oss", "opt", "bloom", "starcoder2"),
    "olmo": ("olmo2", "olmoe", "cohere"),
    "deepseek": ("deepseek_v2", "deepseek_v3"),
    "llama4": ("llama4_text",),
    "mamba": ("mamba", "mamba2", "falcon_mamba"),
    "hybrid": ("jamba", "bamba", "granitemoehybrid", "falcon_h1", "nemotron_h"),
    "rwkv": ("rwkv",),
}


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
        raise SpecError(f"{where}: must hold a JSON object, got {type(config).__name__}")
    model_type = config.get("model_type")
    text = config.get("text_config")
    if isinstance(text, Mapping) and model_type not in known_model_types():
        inherited = {k: config[k] for k in ("torch_dtype", "dtype", "quantization_config") if k in config}
        return from_config({**inherited, **text}, name=name or str(model_type), where=f"{where}: text_config")
    if not isinstance(model_type, str):
        raise SpecError(f"model_type: missing or not text, got {model_type!r}", context=where)
    for family, types in FAMILIES.items():
        if model_type in types:
            module = importlib.import_module(f"worthit.spec.hf.{family}")
            fields = Fields(config, where=where)
            read: Reader = module.READERS[model_type]
            model = read(fields)
            fields.finish()
            return model
    raise unknown_name(
        "model type", model_type, known_model_types(), see="--trace counts it with transformers"
    )
