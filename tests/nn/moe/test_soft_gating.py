"""Soft gating against the sum that the paper writes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.moe.mixtures import EXPERT, MIXTURE, D, E, built, model_of
from nn.tolerances import assert_near

from worthit.cost.params import ffn_params
from worthit.nn.moe.soft_gating import SoftGating
from worthit.nn.moe.topk_moe import TopKMoE, build_moe

SOFT = replace(MIXTURE, routing="soft", n_experts_per_token=E, balance="none")


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("n", [1, 63])
def test_equals_the_sum_over_experts(n: int, has_bias: bool) -> None:
    m = built(replace(SOFT, expert=replace(EXPERT, has_bias=has_bias)))
    assert isinstance(m, SoftGating)
    x = torch.randn(2, n, D, requires_grad=True)
    gates = (x @ m.router.linear.weight.T).softmax(dim=-1)
    want = sum(m.experts.expert(i, x) * gates[..., i : i + 1] for i in range(E))
    assert isinstance(want, torch.Tensor)
    got, signal = m(x), torch.randn(2, n, D)
    assert_near(got, want)
    leaves = [x, *m.parameters()]
    for a, b in zip(
        torch.autograd.grad((got * signal).sum(), leaves),
        torch.autograd.grad((want * signal).sum(), leaves),
        strict=True,
    ):
        assert_near(a, b)


def test_is_top_k_with_every_expert() -> None:
    m, x = built(SOFT), torch.randn(2, 30, D)
    sparse = TopKMoE(replace(SOFT, routing="token-choice"), model_of(SOFT))
    sparse.load_state_dict(m.state_dict())
    assert_near(m(x), sparse(x))


def test_parameters_are_as_counted() -> None:
    with torch.device("meta"):
        m = build_moe(SOFT, model_of(SOFT))
    assert sum(p.numel() for p in m.parameters()) == ffn_params(SOFT, D).total
