"""Linear attention, retention and gated linear attention: every form is the paper's recurrence."""

from __future__ import annotations

import math
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
from torch.nn import functional

from worthit.nn.attention import gated_linear_attention as gated
from worthit.nn.attention import linear_attention as linear
from worthit.nn.attention import retnet
from worthit.spec.model import LinearAttention

PLAIN = LinearAttention(
    kind="linear",
    n_key_heads=2,
    n_value_heads=4,
    key_dim=6,
    value_dim=5,
    chunk=8,
    has_output_gate=False,
    has_output_norm=False,
)
FULL = replace(PLAIN, d_conv=4, has_output_gate=True, has_output_norm=True)
MIXERS = {
    f"{kind}{name}": replace(base, kind=kind)
    for kind in ("linear", "retention", "gated")
    for name, base in (("", PLAIN), (" with everything", FULL))
}


@pytest.mark.parametrize("part", MIXERS.values(), ids=MIXERS)
def test_continues_ignores_padding_and_looks_back_only(part: LinearAttention) -> None:
    check_all(part)
    check_cache_bytes(part)


def inputs_of(n: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(n)
    q, k = (torch.randn(2, 3, n, 6, dtype=dtype) for _ in range(2))
    v, state = torch.randn(2, 3, n, 5, dtype=dtype), torch.randn(2, 3, 6, 5, dtype=dtype)
    return [t.requires_grad_() for t in (q, k, v, state)]


def equal_forms(inputs: list[Tensor], want: object, got: object) -> None:
    """Outputs, last states and gradients of all inputs."""
    both = []
    for out, state in (want, got):
        parts = [out] if state is None else [out, state]
        loss = sum((p.sin() * torch.arange(p.shape[-1])).sum() for p in parts)
        both.append([*parts, *torch.autograd.grad(loss, inputs, allow_unused=True)])
    assert_same_gradients(
        [t for t in both[1] if t is not None], [t for t in both[0] if t is not None]
    )


@pytest.mark.parametrize("chunk", [1, 16, 64])
@pytest.mark.parametrize("n", [1, 2, 16, 63, 100])
def test_chunks_are_the_recurrence(n: int, chunk: int) -> None:
    q, k, v, state = inputs = inputs_of(n)
    equal_forms(
        inputs,
        linear.attend_in_order(q, k, v, state),
        linear.attend_in_chunks(q, k, v, state, chunk=chunk),
    )
    decays = retnet.log_decays(3).double()
    equal_forms(
        inputs,
        retnet.retain_in_order(q, k, v, decays, state),
        retnet.retain_in_chunks(q, k, v, decays, state, chunk=chunk),
    )
    gates = functional.logsigmoid(torch.randn(2, 3, n, 6, dtype=torch.float64)).requires_grad_()
    equal_forms(
        [*inputs, gates],
        gated.attend_in_order(q, k, v, gates, state),
        gated.attend_in_chunks(q, k, v, gates, state, chunk=chunk),
    )


@pytest.mark.parametrize("n", [1, 63, 100])
def test_all_scores_at_once_are_the_recurrence(n: int) -> None:
    q, k, v, _ = inputs_of(n)
    want = linear.attend_in_order(q, k, v)[0]
    equal_forms([q, k, v], (want, None), (linear.attend_at_once(q, k, v), None))
    decays = retnet.log_decays(3).double()
    want = retnet.retain_in_order(q, k, v, decays)[0]
    equal_forms([q, k, v], (want, None), (retnet.retain_at_once(q, k, v, decays), None))


def test_each_rule_contains_the_one_before_it() -> None:
    q, k, v, _ = (t.detach() for t in inputs_of(40))
    plain, _ = linear.attend_in_chunks(q, k, v)
    assert_near(retnet.retain_in_chunks(q, k, v, torch.zeros(3).double())[0], plain)
    decays = retnet.log_decays(3).double()
    as_gates = decays[None, :, None, None].expand(2, 3, 40, 6)
    assert_near(
        gated.attend_in_chunks(q, k, v, as_gates)[0], retnet.retain_in_chunks(q, k, v, decays)[0]
    )


def projected(module: linear.LinearMixer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k = ((x @ p.weight.T).view(*x.shape[:2], 2, 6) for p in (module.q_proj, module.k_proj))
    v = (x @ module.v_proj.weight.T).view(*x.shape[:2], 4, 5)
    return q.repeat_interleave(2, dim=2), k.repeat_interleave(2, dim=2), v


@pytest.mark.parametrize("n", [1, 63])
def test_linear_is_equation_8(n: int) -> None:
    module = built(PLAIN)
    x = torch.randn(2, n, D_MODEL)
    q, k, v = projected(module, x)
    rows = []
    for t in range(n):
        over, under = 0.0, 0.0
        for s in range(t + 1):
            weight = ((functional.elu(q[:, t]) + 1) * (functional.elu(k[:, s]) + 1)).sum(-1)
            over, under = over + weight[..., None] * v[:, s], under + weight[..., None]
        rows.append((over / under).flatten(-2))
    assert_near(run(module, x), torch.stack(rows, dim=1) @ module.o_proj.weight.T)


@pytest.mark.parametrize("n", [1, 63])
def test_retention_is_equation_5_in_complex_numbers(n: int) -> None:
    module = built(replace(PLAIN, kind="retention"))
    x = torch.randn(2, n, D_MODEL)
    q, k, v = projected(module, x)
    theta = 10_000.0 ** (-torch.arange(0, 6, 2) / 6)
    turn = torch.exp(1j * torch.arange(n)[:, None, None] * theta)
    q, k = (torch.view_as_complex(t.unflatten(-1, (3, 2)).contiguous()) * turn for t in (q, k))
    gamma = 1 - 2.0 ** (-5 - torch.arange(4))
    rows = []
    for t in range(n):
        total = 0.0
        for s in range(t + 1):
            score = (q[:, t] * k[:, s].conj()).sum(-1).real * gamma ** (t - s) / math.sqrt(6)
            total = total + score[..., None] * v[:, s]
        rows.append(total.flatten(-2))
    assert_near(run(module, x), torch.stack(rows, dim=1) @ module.o_proj.weight.T)


@pytest.mark.parametrize("n", [1, 63])
def test_gated_is_equation_3_with_norm_and_gate(n: int) -> None:
    module = built(replace(PLAIN, kind="gated", has_output_gate=True, has_output_norm=True))
    x = torch.randn(2, n, D_MODEL)
    q, k, v = projected(module, x)
    alpha = torch.sigmoid(x @ module.decay_proj.weight.T) ** (1 / 16)
    alpha = alpha.view(2, n, 2, 6).repeat_interleave(2, dim=2)
    state, rows = torch.zeros(2, 4, 6, 5), []
    for t in range(n):
        state = alpha[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        read = (q[:, t, :, :, None] * state).sum(-2) / math.sqrt(6)
        power = read.pow(2).mean(-1, keepdim=True)
        rows.append((read / (power + PLAIN.norm_eps).sqrt() * module.norm.weight).flatten(-2))
    out = torch.stack(rows, dim=1) * functional.silu(x @ module.gate_proj.weight.T)
    assert_near(run(module, x), out @ module.o_proj.weight.T)


def test_strong_gates_underflow_and_never_overflow() -> None:
    q, k, v, state = inputs_of(256, torch.float32)
    gates = (-20 * torch.rand(2, 3, 256, 6)).requires_grad_()
    want = gated.attend_in_order(q, k, v, gates, state)
    got = gated.attend_in_chunks(q, k, v, gates, state)
    assert_near(got[0], want[0])
    assert_near(got[1], want[1])
    for gradient in torch.autograd.grad(got[0].sum(), [q, k, v, state, gates]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", ["linear", "retention", "gated"])
def test_bfloat16_keeps_its_states_in_float32(kind: str) -> None:
    module = built(replace(FULL, kind=kind))
    x = torch.randn(2, 40, D_MODEL)
    want = run(module, x)
    cache = module.new_cache()
    got = run(module.to(torch.bfloat16), x.bfloat16(), cache)
    assert cache.get("state").dtype == torch.float32
    assert (got - want).norm() < 0.03 * want.norm()
