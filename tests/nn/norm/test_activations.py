"""Activations and feed-forwards against transformers' tables and modules."""

from __future__ import annotations

import pytest
import torch
from nn.tolerances import assert_near
from torch import nn
from transformers import GptOssConfig, LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.llama.modeling_llama import LlamaMLP

from worthit.nn.ffn import ACTIVATIONS, FeedForward
from worthit.nn.norm.swiglu import clamped_swish
from worthit.spec import model as spec

THEIRS = {
    "relu": "relu",
    "relu2": "relu2",
    "gelu": "gelu",
    "gelu-tanh": "gelu_pytorch_tanh",
    "silu": "silu",
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_transformers(name: str) -> None:
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    got, want = ACTIVATIONS[name](inputs[0]), ACT2FN[THEIRS[name]](inputs[1])
    assert_near(got, want)
    got.sum().backward()
    want.sum().backward()
    assert_near(inputs[0].grad, inputs[1].grad)


def test_the_two_gelus_differ_by_less_than_their_docstring_says() -> None:
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    apart = (ACTIVATIONS["gelu"](x) - ACTIVATIONS["gelu-tanh"](x)).abs().max().item()
    assert 1e-4 < apart < 5e-4


def test_clamped_swish_is_gpt_oss() -> None:
    config = GptOssConfig(hidden_size=8, intermediate_size=6, num_local_experts=2)
    experts = GptOssExperts(config)
    torch.manual_seed(0)
    both = 8 * torch.randn(5, 12)
    # Theirs stands interleaved: gate, value, gate, value.
    want = experts._apply_gate(both)
    got = clamped_swish(both[:, 0::2], both[:, 1::2], experts.limit)
    assert_near(got, want)


def model_of(part: spec.FeedForward) -> spec.ModelSpec:
    layer = spec.Layer(mixers=(), ffn=part)
    return spec.ModelSpec(name="m", d_model=16, vocab_size=8, layers=(layer,), context_len=8)


@pytest.mark.parametrize("activation", ["silu", "gelu-tanh"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_gated_feed_forward_is_llamas(activation: str, has_bias: bool) -> None:
    part = spec.FeedForward(d_ff=24, activation=activation, has_bias=has_bias)
    ours = FeedForward(part, model_of(part))
    theirs = LlamaMLP(
        LlamaConfig(
            hidden_size=16,
            num_attention_heads=2,
            intermediate_size=24,
            hidden_act=THEIRS[activation],
            mlp_bias=has_bias,
        )
    )
    with torch.no_grad():
        for name in ("weight", "bias") if has_bias else ("weight",):
            up = torch.cat([getattr(m, name) for m in (theirs.gate_proj, theirs.up_proj)])
            getattr(ours.up, name).copy_(up)
            getattr(ours.down, name).copy_(getattr(theirs.down_proj, name))
    x = torch.randn(2, 5, 16)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    got, want = ours(inputs[0]), theirs(inputs[1])
    assert_near(got, want)
    got.square().sum().backward()
    want.square().sum().backward()
    assert_near(inputs[0].grad, inputs[1].grad)
    assert_near(ours.down.weight.grad, theirs.down_proj.weight.grad)


def test_plain_feed_forward_and_multipliers_are_their_formula() -> None:
    part = spec.FeedForward(d_ff=24, is_gated=False, activation="relu2", out_scale=0.5)
    ours = FeedForward(part, model_of(part))
    x = torch.randn(3, 5, 16)
    hidden = nn.functional.relu(x @ ours.up.weight.T) ** 2
    assert_near(ours(x), 0.5 * (hidden @ ours.down.weight.T))
    scaled = spec.FeedForward(d_ff=24, gate_scale=2.0)
    ours = FeedForward(scaled, model_of(scaled))
    gate, value = (x @ ours.up.weight.T).chunk(2, dim=-1)
    assert_near(ours(x), (nn.functional.silu(2.0 * gate) * value) @ ours.down.weight.T)
