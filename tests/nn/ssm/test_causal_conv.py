"""The short convolution against torch's, and in parts."""

from __future__ import annotations

import pytest
import torch
from nn.tolerances import assert_near
from torch.nn import functional

from worthit.nn.cache import StateCache
from worthit.nn.ssm.causal_conv import BLOCK, CausalConv


def torchs(conv: CausalConv, x: torch.Tensor) -> torch.Tensor:
    padded = functional.pad(x.transpose(1, 2), (conv.d_conv - 1, 0))
    weight = conv.weight[:, None]
    return functional.conv1d(padded, weight, conv.bias, groups=conv.width).transpose(1, 2)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("d_conv", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 3, 63, 2 * BLOCK + 7])
def test_outputs_and_gradients_of_torch(n: int, d_conv: int, has_bias: bool) -> None:
    torch.manual_seed(0)
    conv = CausalConv(5, d_conv, has_bias=has_bias)
    x, weights = torch.randn(2, n, 5), torch.randn(2, n, 5)
    results = []
    for form in (conv, lambda x: torchs(conv, x)):
        conv.zero_grad()
        given = x.clone().requires_grad_()
        y = form(given)
        (y * weights).sum().backward()
        results.append([y, given.grad, *(p.grad.clone() for p in conv.parameters())])
    for got, want in zip(*results, strict=True):
        assert_near(got, want)


@pytest.mark.parametrize("lengths", [(1, 1, 1, 1, 5), (2, 7), (8, 1), (9,)])
def test_parts_continue_what_the_cache_holds(lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    conv, x, cache = CausalConv(5, 4, has_bias=True), torch.randn(2, 9, 5), StateCache()
    parts = [conv(part, cache) for part in x.split(lengths, dim=1)]
    assert_near(torch.cat(parts, dim=1), torchs(conv, x))
    assert cache.nbytes == 2 * 4 * 5 * 4


def test_bfloat16_sums_gradients_in_float32() -> None:
    torch.manual_seed(0)
    conv = CausalConv(5, 4, has_bias=False)
    x = torch.randn(2, 4 * BLOCK, 5)
    conv(x).sum().backward()
    want = conv.weight.grad.clone()
    narrow = conv.to(torch.bfloat16)
    narrow.zero_grad()
    narrow(x.bfloat16()).sum().backward()
    assert_near(narrow.weight.grad, want.bfloat16())
