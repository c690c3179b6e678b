"""LoRA adapters in the layout of `peft`: read by their headers, added while rows are read.

    W' = W + s B A,      s = alpha / r,  or alpha / sqrt(r) for rank-stabilised adapters

Source:
    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685,
    equation 3; Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with
    LoRA", arXiv:2312.03732.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worthit.errors import SpecError
from worthit.spec.checkpoint import Tensor, read_header
from worthit.spec.resolve import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BASE = ".base_layer."
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(\.weight)?")


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """What an adapter adds to one weight."""

    down: Tensor
    up: Tensor
    factor: float
    is_transposed: bool


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter: low-rank updates by the weight they belong to, and weights that it replaces."""

    folder: Path
    updates: Mapping[str, LowRank] = field(repr=False)
    replaced: Mapping[str, Tensor] = field(repr=False)


def open_adapter(folder: Path, tensors: Mapping[str, Tensor]) -> Adapter:
    """Read an adapter's headers, and check that it fits the checkpoint.

    Raises:
        SpecError: no adapter, one of another kind, or one whose weights have no place here.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise SpecError(f"{folder / CONFIG}: must be a LoRA adapter, got peft_type={kind!r}")
    if config.get("use_dora"):
        raise SpecError(f"{folder / CONFIG}: DoRA adapters are not read here; merge it with peft")
    if not (folder / WEIGHTS).is_file():
        raise SpecError(f"{folder}: no {WEIGHTS}")
    factors: dict[str, dict[str, Tensor]] = {}
    embeddings: set[str] = set()
    replaced: dict[str, Tensor] = {}
    for tensor in read_header(folder / WEIGHTS):
        name = tensor.name.removeprefix(_PREFIX)
        match = _FACTOR.fullmatch(name)
        if match is None and BASE in name:
            # peft stores an adapted embedding beside its factors, as it was.
            continue
        if match is None:
            replaced[name.replace(".modules_to_save.", ".")] = tensor
            continue
        weight = f"{match['module']}.weight"
        factors.setdefault(weight, {})[match["side"]] = tensor
        if match["kind"]:
            embeddings.add(weight)
    problems = []
    updates = {}
    for weight, pair in factors.items():
        if set(pair) != {"A", "B"}:
            problems.append(f"{weight}: has one factor of two")
            continue
        # An embedding's factors are those of its transpose.
        is_transposed = bool(config.get("fan_in_fan_out")) or weight in embeddings
        made = LowRank(
            down=pair["A"],
            up=pair["B"],
            factor=_factor(config, weight.removesuffix(".weight"), pair["A"].shape[0]),
            is_transposed=is_transposed,
        )
        updates[weight] = made
        problems += _misfit(weight, made, tensors)
    problems += [
        f"{name}: not a tensor of the checkpoint" for name in replaced if name not in tensors
    ]
    if problems:
        raise SpecError(*problems, context=str(folder))
    return Adapter(folder=folder, updates=updates, replaced=replaced)


def _misfit(weight: str, made: LowRank, tensors: Mapping[str, Tensor]) -> list[str]:
    stored = tensors.get(weight)
    if stored is None:
        return [f"{weight}: not a tensor of the checkpoint"]
    shape = (made.up.shape[0], made.down.shape[1])
    if made.is_transposed:
        shape = (shape[1], shape[0])
    if made.up.shape[1] != made.down.shape[0] or shape != stored.shape:
        return [f"{weight}: adapts a weight of {list(shape)}, got {list(stored.shape)}"]
    return []


def _factor(config: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = _of_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_pattern(patterns: Any, module: str, otherwise: float) -> float:
    """The value whose pattern the module's name ends with."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return float(value)
    return float(otherwise)
