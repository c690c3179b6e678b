"""Switch against transformers' router and a queue written as a loop."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import pytest
import torch
from nn.moe.mixtures import D_FF, MIXTURE, D, E, built
from nn.tolerances import assert_near
from torch import Tensor, nn
from transformers.models.switch_transformers import modeling_switch_transformers as hf

from worthit.nn.moe.switch import Switch
from worthit.nn.tokens import tokens_of
from worthit.spec.model import FeedForward, MoE

PLAIN = FeedForward(d_ff=D_FF, is_gated=False, activation="relu")
SWITCH = replace(
    MIXTURE,
    n_experts_per_token=1,
    expert=PLAIN,
    has_normalised_weights=False,
    capacity_factor=1.0,
)


def slowly(m: Switch, x: Tensor) -> tuple[Tensor, int]:
    """First choices queue in order of position, then second ones; and how many found no room."""
    moe, n_dropped = m.spec, 0
    out = torch.zeros_like(x)
    for b, row in enumerate(x):
        routing = m.router(row)
        room = [ceil(len(row) * moe.n_experts_per_token / E * (moe.capacity_factor or 0))] * E
        for choice in range(moe.n_experts_per_token):
            for t, token in enumerate(row):
                i = int(routing.chosen[t, choice])
                if room[i] == 0:
                    n_dropped += 1
                    continue
                room[i] -= 1
                out[b, t] = out[b, t] + routing.weights[t, choice] * m.experts.expert(i, token)
    return out, n_dropped


@pytest.mark.parametrize("n", [1, 63, 100])
@pytest.mark.parametrize(
    "moe",
    [SWITCH, replace(MIXTURE, capacity_factor=0.8), replace(SWITCH, capacity_factor=1.25)],
    ids=["switch", "two choices", "roomy"],
)
def test_equals_the_queue(moe: MoE, n: int) -> None:
    m, x = built(moe), torch.randn(2, n, D)
    assert isinstance(m, Switch)
    want, n_dropped = slowly(m, x)
    assert_near(m(x), want)
    assert (n_dropped > 0) == (n > 1), "the queues must overflow to be a test"


@pytest.mark.parametrize("n", [1, 64, 120])
def test_equals_transformers(n: int) -> None:
    torch.manual_seed(0)
    config = hf.SwitchTransformersConfig(
        d_model=D, d_ff=D_FF, num_experts=E, expert_capacity=ceil(n / E), dropout_rate=0.0
    )
    theirs = hf.SwitchTransformersSparseMLP(config).eval()
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.3)
    m = built(SWITCH)
    experts = [theirs.experts[f"expert_{i}"] for i in range(E)]
    m.load_state_dict(
        {
            "router.linear.weight": theirs.router.classifier.weight,
            "experts.up": torch.stack([e.wi.weight for e in experts]),
            "experts.down": torch.stack([e.wo.weight for e in experts]),
        }
    )
    x = torch.randn(3, n, D)
    xs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    got, want = m(xs[0]), theirs(xs[1])
    assert_near(got, want)
    signal = torch.randn_like(x)
    (got * signal).sum().backward()
    (want * signal).sum().backward()
    assert_near(xs[0].grad, xs[1].grad)
    assert_near(m.router.linear.weight.grad, theirs.router.classifier.weight.grad)
    for i, e in enumerate(experts):
        zeros = torch.zeros_like(e.wi.weight)
        assert m.experts.up.grad is not None
        assert_near(m.experts.up.grad[i], zeros if e.wi.weight.grad is None else e.wi.weight.grad)


def test_room_for_all_drops_nobody() -> None:
    m = built(replace(SWITCH, capacity_factor=float(E)))
    x = torch.randn(2, 40, D)
    free = built(replace(SWITCH, capacity_factor=None))
    free.load_state_dict(m.state_dict())
    assert_near(m(x), free(x))


def test_padding_takes_no_room() -> None:
    m, x = built(SWITCH), torch.randn(1, 40, D)
    want = m(x[:, 15:])
    mask = torch.ones(1, 40)
    mask[:, :15] = 0
    tokens = tokens_of(torch.zeros(1, 40, dtype=torch.long), past=0, attention_mask=mask)
    assert_near(m(x, tokens)[:, 15:], want)


def test_earlier_tokens_decide_first() -> None:
    m, x = built(SWITCH), torch.randn(1, 40, D)
    changed = x.clone()
    changed[:, 20:] = torch.randn(1, 20, D)
    assert_near(m(changed)[:, :20], m(x)[:, :20])


def test_jitter_is_of_training_alone() -> None:
    m, x = built(SWITCH), torch.randn(1, 40, D)
    assert torch.equal(m.router(x[0]).logits, m.router(x[0]).logits)
    m.train()
    noisy = m.router(x[0]).logits
    assert not torch.equal(noisy, m.router(x[0]).logits)
