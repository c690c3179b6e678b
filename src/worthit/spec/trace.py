"""Count a model type that is not read: build it without memory, with `transformers`.

The reference code is built on the meta device, where tensors have shapes and no numbers. That
gives every parameter, and a forward pass of a few tokens the size of the cache; it does not give
what the operations are, so the result is no `ModelSpec`: it can be counted, not judged.

Code shipped with a checkpoint is never run, and nothing is downloaded.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from worthit.errors import MissingCapability, SpecError
from worthit.spec.formats import format_of
from worthit.spec.model import Precision

INSTALL = "pip install 'worthit[trace]'"
# What a config may be of, most specific first.
_KINDS = (
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForSeq2SeqLM",
    "AutoModel",
)
# Two prompts whose caches differ by the growth of one token.
_PROMPTS = (5, 6)


@dataclass(frozen=True, kw_only=True)
class TracedModel:
    """What building a model shows: its parameters, and the cache of one sequence.

    `params_by_class` are the parameters held directly by modules of each class. The cache's
    counts are None where the model does not run on shapes alone.
    """

    name: str
    model_type: str
    built_class: str
    n_params: int
    n_embedding_params: int
    params_by_class: dict[str, int]
    cache_elements_per_token: int | None
    fixed_cache_elements: int | None
    precision: Precision = field(default_factory=Precision)
    notes: tuple[str, ...] = ()

    @property
    def weights_bytes(self) -> float:
        """Bytes of all weights in the formats that the config states."""
        inside = self.n_params - self.n_embedding_params
        weights, tables = format_of(self.precision.weights), format_of(self.precision.embeddings)
        return inside * weights.bytes + self.n_embedding_params * tables.bytes

    @property
    def cache_bytes_per_token(self) -> float | None:
        """Bytes that the cache of one sequence grows by; None where it was not counted."""
        if self.cache_elements_per_token is None:
            return None
        return self.cache_elements_per_token * format_of(self.precision.cache).bytes

    def record(self, capacity_bytes: float | None = None) -> dict[str, Any]:
        """The record of `worthit cost`, with null for all that needs to know the operations.

        Args:
            capacity_bytes: memory that the weights would have to fit, or None.
        """
        fits = None if capacity_bytes is None else self.weights_bytes <= capacity_bytes
        return {
            "model": {
                "name": self.name,
                "model_type": self.model_type,
                "built_class": self.built_class,
                "params_by_class": self.params_by_class,
            },
            "params": {
                "total": self.n_params,
                "active": None,
                "active_without_embeddings": None,
                "embedding": self.n_embedding_params,
            },
            "cache": {
                "bytes_per_token": self.cache_bytes_per_token,
                "bytes_per_token_beyond_window": None,
                "fixed_bytes_per_sequence": None,
                "bytes_per_sequence": None,
            },
            "flops": None,
            "memory": {
                "weights_bytes": self.weights_bytes,
                "capacity_bytes": capacity_bytes,
                "fits": fits,
            },
            "time": None,
            "bottlenecks": [],
            "ledger": [],
            "notes": list(self.notes),
        }

    def lines(self, capacity_bytes: float | None = None) -> list[str]:
        """The same for a reader, a line a fact."""
        cache = self.cache_bytes_per_token
        lines = [
            f"{self.name} ({self.model_type}), built as {self.built_class} without memory",
            f"parameters   {self.n_params:,}, of them {self.n_embedding_params:,} input embedding",
            f"weights      {self.weights_bytes / 1e9:.4g} GB as {self.precision.weights}",
            "cache        "
            + ("not counted" if cache is None else f"{cache:,.0f} bytes per token and sequence"),
        ]
        if capacity_bytes is not None:
            verb = "fit" if self.weights_bytes <= capacity_bytes else "do not fit"
            lines.append(f"memory       the weights {verb} {capacity_bytes / 1e9:.4g} GB")
        return [*lines, *self.notes]


def trace(source: Mapping[str, Any] | str | os.PathLike[str]) -> TracedModel:
    """Count the model of a config by building it on the meta device.

    Args:
        source: a parsed `config.json`, its path, a folder with one, a hub id in the local cache,
            or a preset.

    Raises:
        MissingCapability: `transformers` or torch is not installed, or the hub id not here.
        SpecError: no such file, or a config that transformers does not build.
    """
    config, name = _config(source)
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise MissingCapability(f"tracing a model needs {package}", INSTALL)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise SpecError(f"{name}: model_type: missing or not text, got {model_type!r:.40}")
    with _quiet():
        model = _build(config, model_type, name)
        per_token, fixed = _cache(model)
        return _counted(config, model_type, name, model, per_token, fixed)


def _config(source: Mapping[str, Any] | str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    from worthit.spec._shipped import preset_entry, preset_names
    from worthit.spec.resolve import find_config, read_json

    if isinstance(source, Mapping):
        return dict(source), str(source.get("_name_or_path") or source.get("model_type", "model"))
    text = os.fspath(source)
    if text.strip().lower() in preset_names():
        entry = preset_entry(text)
        if "config" in entry:
            return entry["config"], entry["id"]
    path = find_config(text)
    data = read_json(path)
    if not isinstance(data, dict):
        raise SpecError(f"{path}: must hold a JSON object, got {type(data).__name__}")
    return data, str(source)


def _build(config: dict[str, Any], model_type: str, name: str) -> Any:
    # Read by the hub's client when it is imported: some configs name a backbone to fetch.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers

    options = {k: v for k, v in config.items() if k not in _LEFT_OUT}
    try:
        built = transformers.AutoConfig.for_model(model_type, **options)
    except ValueError as error:
        known = f"transformers {transformers.__version__} knows no model type {model_type!r}"
        is_unknown = "Unrecognized model identifier" in str(error)
        raise SpecError(f"{name}: {known if is_unknown else _first_line(error)}") from None
    except Exception as error:  # a config of wrong values fails in any way
        raise SpecError(f"{name}: transformers refuses the config: {_first_line(error)}") from None
    problem = ""
    for kind in _KINDS:
        make = getattr(transformers, kind, None)
        if make is None or (kind != "AutoModel" and type(built) not in make._model_mapping):
            continue
        try:
            with torch.device("meta"):
                # Half precision: some grouped kernels have no other on the meta device.
                return make.from_config(built, dtype=torch.bfloat16, trust_remote_code=False).eval()
        except Exception as error:
            problem = problem or _first_line(error)
    raise SpecError(f"{name}: transformers does not build a {model_type}: {problem or 'no model'}")


# Quantization changes modules and needs its packages; `auto_map` names code to run.
_LEFT_OUT = ("model_type", "quantization_config", "auto_map", "torch_dtype", "dtype")


def _cache(model: Any) -> tuple[int | None, int | None]:
    """Elements that the cache grows by a token, and those it holds whatever the length."""
    import torch

    held = []
    for length in _PROMPTS:
        tokens = torch.ones(1, length, dtype=torch.long, device="meta")
        try:
            with torch.no_grad():
                out = model(input_ids=tokens, use_cache=True)
        except Exception:
            # Some models look at numbers on their way, and the meta device has none.
            return None, None
        cache = getattr(out, "past_key_values", None)
        cache = getattr(out, "cache_params", None) if cache is None else cache
        n = _elements(cache)
        if n is None:
            return None, None
        held.append(n)
    per_token = (held[1] - held[0]) // (_PROMPTS[1] - _PROMPTS[0])
    return per_token, held[0] - per_token * _PROMPTS[0]


def _elements(cache: Any) -> int | None:
    """Elements of every tensor in a transformers cache; None for a kind that is not known."""
    layers = getattr(cache, "layers", None)
    if not isinstance(layers, list) or not layers:
        return None
    import torch

    total = 0
    for layer in layers:
        for value in vars(layer).values():
            tensors = value.values() if isinstance(value, dict) else (value,)
            total += sum(t.numel() for t in tensors if isinstance(t, torch.Tensor) and t.ndim > 1)
    return total


def _counted(
    config: dict[str, Any],
    model_type: str,
    name: str,
    model: Any,
    per_token: int | None,
    fixed: int | None,
) -> TracedModel:
    from worthit.spec.hf._fields import Fields
    from worthit.spec.hf._precision import precision

    by_class: Counter[str] = Counter()
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                by_class[type(module).__name__] += parameter.numel()
    notes = [
        "this is a count and no model that can be judged: parameters, bytes and cache are known, "
        "operations, time and verdicts are not"
    ]
    fields = Fields(config)
    formats = precision(fields)
    if fields.problems:
        formats = Precision()
        notes.append("the number formats are not understood: bytes are those of bf16")
    return TracedModel(
        name=name,
        model_type=model_type,
        built_class=type(model).__name__,
        n_params=sum(by_class.values()),
        n_embedding_params=_embedding(model),
        params_by_class=dict(by_class.most_common()),
        cache_elements_per_token=per_token,
        fixed_cache_elements=fixed,
        precision=formats,
        notes=tuple(notes),
    )


def _embedding(model: Any) -> int:
    try:
        table = model.get_input_embeddings()
        return int(table.weight.numel())
    except (AttributeError, NotImplementedError):  # a model without a table of tokens
        return 0


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's remarks on a config that is only counted."""
    import transformers

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
