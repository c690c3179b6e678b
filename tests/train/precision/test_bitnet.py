"""BitNet b1.58 against transformers' quantizers and linear layer, gradients included."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import nn

from worthit.spec.formats import format_of
from worthit.train.precision import apply_precision, bitnet

# Theirs compiles itself, which takes longer than all of this file.
with patch("torch.compile", lambda function: function):
    from transformers.integrations.bitnet import (
        ActQuant,
        AutoBitLinear,
        WeightQuant,
        pack_weights,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_activations_are_transformers(dtype: torch.dtype) -> None:
    w, x = torch.randn(24, 40).to(dtype), torch.randn(3, 5, 40).to(dtype)
    w[0, :3] = 0
    x[0, 0] = 0
    assert torch.equal(bitnet.quantize_weights(w), WeightQuant.apply(w))
    assert torch.equal(bitnet.quantize_activations(x), ActQuant.apply(x))


@pytest.mark.parametrize("has_sub_norm", [False, True])
def test_the_layer_is_transformers(has_sub_norm: bool) -> None:
    theirs = AutoBitLinear(
        40, 24, bias=True, online_quant=True, use_rms_norm=has_sub_norm, rms_norm_eps=1e-6
    )
    ours = nn.Linear(40, 24)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    model = apply_precision(nn.Sequential(ours), "bitnet", has_sub_norm=has_sub_norm)
    inputs = [x.requires_grad_() for x in torch.randn(7, 40).expand(2, -1, -1).clone()]
    got, want = model(inputs[0]), theirs(inputs[1])
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    got.square().sum().backward()
    want.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[0].weight.grad, theirs.weight.grad, rtol=1e-5, atol=1e-5)


def test_three_values_and_the_mean_of_magnitudes() -> None:
    w = torch.tensor([[0.4, -1.0, 0.05, 2.55]])  # mean 1
    assert bitnet.ternary(w).tolist() == [[0, -1, 0, 1]]
    torch.testing.assert_close(bitnet.quantize_weights(w), torch.tensor([[0.0, -1.0, 0.0, 1.0]]))


def test_a_bell_shaped_weight_loses_half_of_itself() -> None:
    """31 % zeros, relative error .51: what a ternary matrix of Gaussian weights has."""
    w = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    assert (bitnet.ternary(w) == 0).float().mean() == pytest.approx(0.31, abs=0.005)
    error = (bitnet.quantize_weights(w) - w).norm() / w.norm()
    assert error == pytest.approx(0.51, abs=0.005)


def test_matrices_of_a_stack_have_their_own_scales() -> None:
    w = torch.randn(3, 8, 10) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    each = torch.stack([bitnet.quantize_weights(one) for one in w])
    assert torch.equal(bitnet.quantize_weights(w), each)


@pytest.mark.parametrize("shape", [(16, 64), (5, 7), (3, 4, 10)])
def test_two_bits_a_weight(shape: tuple[int, ...]) -> None:
    w = torch.randn(*shape)
    packed, scale = bitnet.pack(w)
    assert torch.equal(bitnet.unpack(packed, scale, shape[-1]), bitnet.quantize_weights(w))
    if shape[-1] % 4 == 0:
        assert packed.nbytes == w.numel() * format_of("ternary").bytes


def test_codes_are_those_of_transformers() -> None:
    """The same two bits; theirs pack four rows into one, ours four neighbours."""
    w = torch.randn(4, 6)
    theirs = pack_weights(bitnet.ternary(w).clone())
    ours, _ = bitnet.pack(w.T.contiguous())
    assert torch.equal(ours[:, 0], theirs[0])
