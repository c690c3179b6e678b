"""Linear recurrences: in order, by doubling and in chunks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nn.tolerances import assert_near
from torch import Tensor

from worthit.nn.ssm.scan import CHUNK, scan, scan_associatively, scan_in_order


@pytest.mark.parametrize("form", [scan, scan_associatively])
@pytest.mark.parametrize("n", [1, 2, CHUNK, 63, 100])
def test_outputs_and_gradients_of_the_definition(
    form: Callable[[Tensor, Tensor, Tensor], Tensor], n: int
) -> None:
    torch.manual_seed(n)
    a = torch.rand(2, n, 3, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, n, 3, 4, dtype=torch.float64, requires_grad=True)
    start = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, n, 3, 4, dtype=torch.float64)
    results = []
    for run in (form, scan_in_order):
        h = run(a, b, start)
        results.append([h, *torch.autograd.grad((h * weights).sum(), [a, b, start])])
    for got, want in zip(*results, strict=True):
        assert_near(got, want)


def test_by_hand() -> None:
    a, b = torch.tensor([[2.0, 3.0, 0.5]]), torch.tensor([[1.0, 1.0, 4.0]])
    # 2 * 10 + 1, 3 * 21 + 1, 64 / 2 + 4
    assert_near(scan(a, b, torch.tensor([10.0])), torch.tensor([[21.0, 64.0, 36.0]]))


def test_inputs_are_left_as_they_are() -> None:
    a, b, start = torch.rand(1, 40, 3), torch.randn(1, 40, 3), torch.zeros(1, 3)
    before = a.clone(), b.clone()
    scan(a, b, start)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])
