"""Number formats of a checkpoint, from its dtype and `quantization_config`."""

from __future__ import annotations

from typing import Any

from worthit.spec.formats import FORMATS
from worthit.spec.hf._fields import Fields
from worthit.spec.model import Precision

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def precision(fields: Fields) -> Precision:
    """The formats of weights, embeddings, activations and cache; bf16 where the file is silent."""
    dtype = fields.get("dtype", fields.get("torch_dtype", "bfloat16"))
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        name = "bfloat16"
    if name not in _DTYPES:
        fields.problem("torch_dtype", f"understood: {', '.join(_DTYPES)}; got {dtype!r}")
    plain = _DTYPES.get(name, "bf16")
    weights = plain
    experts, embeddings = None, plain
    # Weights stored in fp32 are computed in it too, until someone converts them.
    table = fields.table("quantization_config")
    if table is not None:
        weights = _quantized(fields, table)
        if table.config.get("quant_method") == "worthit":
            embeddings = _format(fields, table, "embeddings", plain)
            experts = _format(fields, table, "experts", weights)
            experts = None if experts == weights else experts
    if weights == "mxfp4":
        # OpenAI's files keep everything but the experts in 16 bits.
        weights, experts = plain, "mxfp4"
    # Nemotron-H says what its states are kept in; elsewhere it is fp32 by custom.
    state = _DTYPES.get(str(fields.get("mamba_ssm_cache_dtype", "float32")), "fp32")
    return Precision(
        weights=weights,
        experts=experts,
        embeddings=embeddings,
        activations=plain,
        cache=plain,
        state=state,
    )


def _quantized(fields: Fields, table: Fields) -> str:
    config = table.config
    method = config.get("quant_method")
    if method is None and (config.get("load_in_4bit") or config.get("load_in_8bit")):
        method = "bitsandbytes"
    if method == "worthit":
        return _format(fields, table, "weights", "missing")
    if method == "fp8":
        block = config.get("weight_block_size")
        if block is None:
            return "fp8"
        if block == [128, 128]:
            return "fp8-block"
        return _refuse(fields, "weight_block_size", block, "[128, 128]")
    if method == "mxfp4":
        return "mxfp4"
    if method in ("gptq", "awq"):
        bits = config.get("bits", config.get("w_bit"))
        group = config.get("group_size", config.get("q_group_size"))
        return _integer(fields, bits, group)
    if method == "bitsandbytes":
        if config.get("load_in_8bit"):
            return "int8"
        # A scale in fp32 for each 64 elements: the bits of int4-g64. Double quantization of the
        # scales, which saves 0.37 bits an element, is not told apart.
        return "int4-g64"
    if method == "compressed-tensors":
        return _compressed(fields, config)
    return _refuse(
        fields,
        "quant_method",
        method,
        "fp8, mxfp4, gptq, awq, bitsandbytes, compressed-tensors, worthit",
    )


def _format(fields: Fields, table: Fields, key: str, otherwise: str) -> str:
    name = table.config.get(key) or otherwise
    if name in FORMATS:
        return str(name)
    return _refuse(fields, key, name, ", ".join(FORMATS))


def _integer(fields: Fields, bits: Any, group: Any) -> str:
    if bits == 8:
        return "int8-g32" if group == 32 else "int8"
    name = f"int{bits}-g{group}"
    if name in FORMATS:
        return name
    known = ", ".join(f for f in FORMATS if f.startswith("int"))
    return _refuse(fields, "bits", f"{bits} bits in groups of {group}", known)


def _compressed(fields: Fields, config: Any) -> str:
    groups = config.get("config_groups")
    found = groups.values() if isinstance(groups, dict) else []
    schemes = [group.get("weights") for group in found if isinstance(group, dict)]
    if len(schemes) != 1 or not isinstance(schemes[0], dict):
        return _refuse(fields, "config_groups", groups, "one group with `weights`")
    scheme = schemes[0]
    bits, group, kind = scheme.get("num_bits"), scheme.get("group_size"), scheme.get("type")
    if kind == "float" and bits == 8:
        return "fp8-block" if scheme.get("strategy") == "block" else "fp8"
    if kind == "float" and bits == 4 and group in (16, 32):
        return "nvfp4" if group == 16 else "mxfp4"
    if kind == "int":
        return _integer(fields, bits, group)
    return _refuse(fields, "config_groups", scheme, "int or float weights of 4 or 8 bits")


def _refuse(fields: Fields, key: str, value: object, known: str) -> str:
    fields.problem(f"quantization_config.{key}", f"understood: {known}; got {value!r}")
    return "bf16"
