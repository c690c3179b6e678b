"""Balancing losses against transformers', the bias against its rule, and that both work."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.moe.mixtures import MIXTURE, D, E, K, built
from nn.tolerances import assert_near
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func as top_k_loss
from transformers.models.switch_transformers import modeling_switch_transformers as switch

from worthit.nn.moe.aux_free_balancing import BiasBalancer, updated_bias
from worthit.nn.moe.balance import (
    load_balance_loss,
    load_of,
    max_violation,
    router_z_loss,
    routings,
)
from worthit.nn.moe.topk_moe import Routing


@pytest.mark.parametrize("is_padded", [False, True])
def test_losses_equal_transformers(is_padded: bool) -> None:
    m, x = built(MIXTURE), torch.randn(2, 50, D)
    with routings(m) as seen:
        m(x)
    (routing,) = seen
    mask = torch.ones(2, 50)
    if is_padded:
        mask[0, :20] = 0
    is_real = mask.bool() if is_padded else None
    want = top_k_loss((routing.logits,), E, K, mask if is_padded else None)
    assert isinstance(want, torch.Tensor)
    assert_near(load_balance_loss(routing, is_real), want)
    if not is_padded:
        z = switch.router_z_loss_func(routing.logits[None])
        assert_near(router_z_loss(routing), torch.as_tensor(z))


def test_the_loss_of_one_choice_is_switch_transformers() -> None:
    m, x = built(replace(MIXTURE, n_experts_per_token=1)), torch.randn(50, D)
    routing = m.router(x)
    want = switch.load_balancing_loss_func(routing.scores[None], routing.chosen[None, :, 0])
    assert_near(load_balance_loss(routing), torch.as_tensor(want))


def test_sigmoid_scores_count_as_shares() -> None:
    m, x = built(replace(MIXTURE, score="sigmoid")), torch.randn(50, D)
    routing = m.router(x)
    s = (x @ m.router.linear.weight.T).sigmoid()
    shares = (s / s.sum(dim=-1, keepdim=True)).mean(dim=0)
    counts = torch.tensor([(routing.chosen == i).sum() for i in range(E)])
    assert_near(load_balance_loss(routing), E * (counts / 50 * shares).sum())


@pytest.mark.parametrize("k", [1, 2, 4])
def test_uniform_routing_costs_k(k: int) -> None:
    logits = torch.zeros(E, E)
    chosen = (torch.arange(E)[:, None] + torch.arange(k)) % E
    routing = Routing(logits, logits.softmax(-1), chosen, torch.ones(E, k))
    assert load_balance_loss(routing).item() == pytest.approx(k)
    assert max_violation(routing.load) == 0.0


def test_collecting_ends_with_its_block() -> None:
    m, x = built(MIXTURE), torch.randn(1, 5, D)
    with routings(m) as seen:
        m(x)
        m(x)
    m(x)
    assert len(seen) == 2
    assert load_of(seen).sum() == 2 * 5 * K


def test_the_loss_reaches_the_router() -> None:
    m, x = built(MIXTURE), torch.randn(1, 50, D)
    with routings(m) as seen:
        m(x)
    load_balance_loss(seen[0]).backward()
    assert m.router.linear.weight.grad is not None
    assert m.router.linear.weight.grad.abs().max() > 0


def test_the_bias_follows_its_rule() -> None:
    got = updated_bias(torch.tensor([0.5, 0.0, -0.5]), torch.tensor([9, 1, 5]), rate=0.1)
    assert_near(got, torch.tensor([0.4, 0.1, -0.5]))


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_the_bias_balances_what_is_chosen(score: str) -> None:
    m = built(replace(MIXTURE, balance="bias", score=score))
    assert m.router.selection_bias is not None
    m.router.selection_bias.zero_()
    x = torch.randn(1, 2000, D) + 0.5  # a common direction favours some experts
    before = max_violation(m.router(x[0]).load)
    balancer = BiasBalancer(m, rate=0.002)
    for _ in range(400):
        with balancer:
            m.router(x[0])
        balancer.step()
    assert before > 0.5
    assert max_violation(m.router(x[0]).load) < 0.1
    assert m.router.linear.weight.grad is None
