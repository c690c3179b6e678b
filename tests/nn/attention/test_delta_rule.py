"""The delta rule, plain and gated: both forms, and transformers' Qwen3-Next layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.recurrent_checks import (
    D_MODEL,
    assert_same_gradients,
    built,
    check_all,
    check_cache_bytes,
    run,
)
from nn.tolerances import assert_near
from torch import Tensor
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from worthit.nn.attention.delta_rule import delta_rule, delta_rule_in_order, unit
from worthit.nn.attention.gated_delta_rule import gated_delta_rule, gated_delta_rule_in_order
from worthit.spec.model import LinearAttention

GATED = LinearAttention(
    kind="gated-delta", n_key_heads=2, n_value_heads=4, key_dim=8, value_dim=6, d_conv=4
)
KINDS = {
    "gated": GATED,
    "gated, short chunks": replace(GATED, chunk=4, n_value_heads=2),
    "delta": replace(GATED, kind="delta", chunk=8),
    "delta without convolution": replace(
        GATED, kind="delta", d_conv=0, has_output_gate=False, has_output_norm=False
    ),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_continues_ignores_padding_and_looks_back_only(kind: LinearAttention) -> None:
    check_all(kind)
    check_cache_bytes(kind)


def inputs_of(n: int, dtype: torch.dtype = torch.float64, *, decay: float = 1.0) -> list[Tensor]:
    """q, k, v, log decay, strength and a state to start from."""
    torch.manual_seed(n)
    q, k = (unit(torch.randn(2, 3, n, 5, dtype=dtype)) for _ in range(2))
    v = torch.randn(2, 3, n, 4, dtype=dtype)
    log_decay = -torch.rand(2, 3, n, dtype=dtype) * decay
    strength = torch.rand(2, 3, n, dtype=dtype)
    state = torch.randn(2, 3, 5, 4, dtype=dtype)
    return [t.requires_grad_() for t in (q, k, v, log_decay, strength, state)]


@pytest.mark.parametrize("chunk", [1, 16, 64])
@pytest.mark.parametrize("n", [1, 2, 16, 63, 100])
@pytest.mark.parametrize("is_gated", [False, True], ids=["delta", "gated"])
def test_chunks_are_the_recurrence(n: int, chunk: int, is_gated: bool) -> None:
    inputs = inputs_of(n)
    in_order, in_chunks = delta_rule_in_order, delta_rule
    if is_gated:
        in_order, in_chunks = gated_delta_rule_in_order, gated_delta_rule
    else:
        del inputs[3]
    results = []
    for out, state in (in_order(*inputs), in_chunks(*inputs, chunk=chunk)):
        loss = (out * torch.arange(4.0)).sum() + state.square().sum()
        results.append([out, state, *torch.autograd.grad(loss, inputs)])
    assert_same_gradients(results[1], results[0])


def test_as_the_paper_writes_it() -> None:
    q, k, v, log_decay, strength, state = (t.detach() for t in inputs_of(9))
    out, last = gated_delta_rule(q, k, v, log_decay, strength, state)
    eye = torch.eye(5, dtype=torch.float64)
    for t in range(9):
        key, beta = k[:, :, t, :, None], strength[:, :, t, None, None]
        erase = log_decay[:, :, t, None, None].exp() * (eye - beta * key * key.transpose(-1, -2))
        state = erase @ state + beta * key * v[:, :, t, None, :]
        assert_near(out[:, :, t], (q[:, :, t, None, :] @ state)[:, :, 0])
    assert_near(last, state)


def test_without_decay_the_gated_rule_is_the_delta_rule() -> None:
    q, k, v, log_decay, strength, state = inputs_of(50)
    plain = delta_rule(q, k, v, strength, state)
    gated = gated_delta_rule(q, k, v, torch.zeros_like(log_decay), strength, state)
    assert_near(gated[0], plain[0])
    assert_near(gated[1], plain[1])


def test_full_strength_replaces_what_a_key_recalls() -> None:
    key = unit(torch.ones(1, 1, 1, 4, dtype=torch.float64)) * (1 + 5e-7)
    values = torch.randn(1, 1, 7, 3, dtype=torch.float64)
    keys, ones = key.expand(1, 1, 7, 4), torch.ones(1, 1, 7, dtype=torch.float64)
    out, _ = delta_rule(keys, keys, values, ones)
    torch.testing.assert_close(out, values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("decay", [1e-6, 1e3])
def test_no_decay_overflows(decay: float) -> None:
    inputs = inputs_of(200, torch.float32, decay=decay)
    got, want = gated_delta_rule(*inputs), gated_delta_rule_in_order(*inputs)
    assert_near(got[0], want[0])
    assert_near(got[1], want[1])
    for gradient in torch.autograd.grad(got[0].sum(), inputs):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("n", [1, 63, 100])
def test_outputs_and_gradients_of_transformers(n: int) -> None:
    ours = built(GATED)
    config = Qwen3NextConfig(
        hidden_size=D_MODEL,
        num_hidden_layers=1,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=6,
        linear_conv_kernel_dim=4,
        num_experts=2,
    )
    theirs = Qwen3NextGatedDeltaNet(config, layer_idx=0)
    # Theirs go by key heads: query, key, two values, two gates; strengths and steps likewise.
    by_head = [("q_proj", 8), ("k_proj", 8), ("v_proj", 12), ("gate_proj", 12)]
    own = dict(ours.named_parameters())

    def joined(names: list[tuple[str, int]], values: dict[str, Tensor]) -> Tensor:
        parts = [values[f"{name}.weight"].view(2, width, D_MODEL) for name, width in names]
        return torch.cat(parts, dim=1).flatten(0, 1)

    def as_theirs(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            "in_proj_qkvz.weight": joined(by_head, values),
            "in_proj_ba.weight": joined([("strength_proj", 2), ("step_proj", 2)], values),
            "conv1d.weight": values["conv.weight"][:, None],
            "dt_bias": values["step_bias"],
            "A_log": values["log_a"],
            "norm.weight": values["norm.weight"],
            "out_proj.weight": values["o_proj.weight"],
        }

    theirs.load_state_dict(as_theirs({name: p.detach() for name, p in own.items()}))
    x = torch.randn(2, n, D_MODEL)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    got, want = run(ours, inputs[0]), theirs(inputs[1])
    assert_near(got, want)
    weights = torch.randn_like(got)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    assert_near(inputs[0].grad, inputs[1].grad)
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in own.items()}
    for name, gradient in as_theirs(gradients).items():
        expected = theirs.get_parameter(name).grad
        assert_near(gradient, torch.zeros_like(gradient) if expected is None else expected)
