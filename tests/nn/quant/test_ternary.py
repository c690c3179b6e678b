"""Ternary weights and 8-bit inputs against transformers' BitNet, and the fast form against both."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from worthit.nn.quant.grid import grid_of
from worthit.nn.quant.kernels import Int4Linear, fast
from worthit.nn.quant.linear import Int8Inputs, StoredLinear, rounded, widened


@pytest.fixture
def bitnet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The reference, uncompiled: what it compiles takes seconds and changes nothing."""
    name = "transformers.integrations.bitnet"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    import transformers.integrations.bitnet as reference

    yield reference
    sys.modules.pop(name, None)


def test_weights_are_rounded_as_it_rounds_them(bitnet: Any) -> None:
    torch.manual_seed(3)
    weight = torch.randn(8, 64)
    known = bitnet.WeightQuant.apply(weight)
    found = widened(grid_of("ternary"), *rounded(grid_of("ternary"), weight, torch.float32))
    torch.testing.assert_close(found, known)
    assert len(found.unique()) == 3


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_layer_is_its_layer(bitnet: Any, has_bias: bool) -> None:
    torch.manual_seed(0)
    grid = grid_of("ternary")
    codes, scales, _ = rounded(grid, torch.randn(64, 128))
    bias = torch.randn(64).bfloat16() if has_bias else None
    stored = StoredLinear(grid, codes, scales, bias=bias, inputs=Int8Inputs())
    theirs = bitnet.BitLinear(128, 64, bias=has_bias, dtype=torch.float32)
    theirs.weight.copy_(bitnet.pack_weights(grid.unpack(codes).float()))
    theirs.weight_scale.copy_(1 / scales[0].float())
    if bias is not None:
        theirs.bias.copy_(bias)
    x = torch.randn(5, 128).bfloat16()
    known = theirs(x.float())
    # Both round once, to bf16.
    assert ((stored(x).float() - known).abs() <= 2.0**-8 * known.abs() + 1e-6).all()
    quick = fast(stored)
    assert isinstance(quick, Int4Linear)
    assert (quick(x).float() - known).abs().max() <= 2.0**-7 * known.abs().max()
    many = torch.randn(200, 128).bfloat16()
    known = theirs(many.float())
    assert (quick(many).float() - known).abs().max() <= 2.0**-7 * known.abs().max()
