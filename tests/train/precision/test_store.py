"""A trained BitNet stored: the same logits in two bits a weight, in files and in the fast form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nn.quant.models import IDS, made
from nn.tolerances import assert_near

import worthit
from worthit.errors import SpecError
from worthit.nn.inference import optimize, products
from worthit.nn.quant.quantize import nbytes
from worthit.spec.resolve import resolve
from worthit.train.precision import apply_precision, bitnet, store_bitnet


@pytest.mark.parametrize("kind", ["tied", "biases"])
@pytest.mark.parametrize("has_sub_norm", [True, False])
def test_it_says_what_was_trained(kind: str, has_sub_norm: bool, tmp_path: Path) -> None:
    model = apply_precision(made(kind, torch.float32), "bitnet", has_sub_norm=has_sub_norm)
    with torch.inference_mode():
        known = model(IDS)
        stored = store_bitnet(model)
        torch.testing.assert_close(stored(IDS), known, rtol=1e-4, atol=1e-4)
        worthit.save_model(stored, tmp_path)
        loaded = worthit.load_model(tmp_path, dtype="fp32")
        assert torch.equal(loaded(IDS), stored(IDS))
        wide = worthit.load_model(tmp_path, dtype="fp32", packed=False)
        assert torch.equal(wide(IDS), stored(IDS))  # its inputs are rounded: it stays packed
        low = worthit.load_model(tmp_path, dtype="bf16")
        before = low(IDS)
        optimize(low)
        assert products(low)["int4"] == 8  # four a layer: queries, keys and values are one
        assert_near(low(IDS).to(before.dtype), before)
    assert resolve(str(tmp_path)).warnings == ()
    assert resolve(str(tmp_path)).model.precision.weights == "ternary"


def test_two_bits_a_weight() -> None:
    model = made("tied")
    tables = 2 * (96 * 64 + 5 * 64)
    matrices = (nbytes(model) - tables) // 2
    rows = sum(p.shape[0] for p in model.layers.parameters() if p.ndim == 2)
    stored = store_bitnet(apply_precision(model, "bitnet"))
    assert nbytes(stored) == matrices // 4 + 2 * rows + tables


def test_the_norm_is_the_one_that_was_trained() -> None:
    from worthit.nn.quant import linear

    assert (linear.NORM_EPS, linear.TINY_ROW) == (bitnet.NORM_EPS, bitnet.TINY)


def test_what_cannot_be_stored_is_refused() -> None:
    with pytest.raises(SpecError, match="is no BitNet; train it with"):
        store_bitnet(made("tied"))
    with pytest.raises(SpecError, match="is no BitNet"):
        store_bitnet(apply_precision(made("tied"), "mxfp8"))
    with pytest.raises(SpecError, match="experts of a BitNet"):
        store_bitnet(apply_precision(made("experts"), "bitnet"))
