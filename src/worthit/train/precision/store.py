"""A trained BitNet as it is served: two bits a weight, eight an input, no copy in full precision.

Ma et al. 2024, "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits",
arXiv:2402.17764, section 2. What trained with `apply_precision(model, "bitnet")` computes with the
three values of each matrix and no others; so the copy that learnt them can go.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from worthit.errors import SpecError
from worthit.nn.decoder import Decoder
from worthit.nn.quant.grid import grid_of
from worthit.nn.quant.linear import Int8Inputs, StoredLinear
from worthit.nn.quant.quantize import QUANT_METHOD
from worthit.train.precision.linear import NarrowExperts, NarrowLinear


def store_bitnet(model: Decoder) -> Decoder:
    """Store the ternary matrices of a trained BitNet, in place, and return it.

    It can be saved, loaded and laid out for inference as any model that `worthit quantize` makes.

    Raises:
        SpecError: a model that is no BitNet, or one with experts, or with rows that cannot be
            packed.
    """
    narrow = {name: m for name, m in model.named_modules() if isinstance(m, NarrowLinear)}
    if not narrow or any(m.narrow.name != "bitnet" for m in narrow.values()):
        raise SpecError("the model is no BitNet; train it with apply_precision(model, 'bitnet')")
    if any(isinstance(m, NarrowExperts) for m in model.modules()):
        raise SpecError("experts of a BitNet are not stored in few bits")
    grid = grid_of("ternary")
    for name, linear in narrow.items():
        if not grid.fits(linear.in_features):
            raise SpecError(f"{name}: {linear.in_features} columns; packing takes multiples of 32")
    has_sub_norm = next(iter(narrow.values())).narrow.has_sub_norm
    for name, linear in narrow.items():
        owner, _, leaf = name.rpartition(".")
        with torch.no_grad():
            stored = _stored(linear, has_sub_norm=has_sub_norm)
        setattr(model.get_submodule(owner), leaf, stored)
    model.quantization = {
        "quant_method": QUANT_METHOD,
        "weights": "ternary",
        "embeddings": None,
        "experts": None,
        "method": "bitnet",
        "inputs": {"bits": 8, "has_sub_norm": has_sub_norm},
    }
    precision = replace(model.spec.precision, weights="ternary", operands="int8")
    model.spec = replace(model.spec, precision=precision)
    return model


def _stored(linear: NarrowLinear, *, has_sub_norm: bool) -> StoredLinear:
    """Codes and scales from the weights that the layer multiplies by."""
    grid, weight = grid_of("ternary"), linear.weight.detach()
    used = linear.narrow.weights(weight.float(), 1)
    # Of each matrix its one value that is not 0; a row of zeros has it from a scale of its own.
    scales = used.abs().amax(1, keepdim=True)
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    codes = grid.pack((used / scales).round().to(torch.int8))
    bias = None if linear.bias is None else linear.bias.detach()
    inputs = Int8Inputs(has_sub_norm=has_sub_norm)
    return StoredLinear(grid, codes, scales.to(weight.dtype), bias=bias, inputs=inputs)
