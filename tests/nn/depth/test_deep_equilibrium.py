"""Equilibria against long unrolls and linear algebra."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.depth.models import (
    ATTENTION,
    KV_ELEMENTS,
    LAYER,
    D,
    built,
    in_pieces,
    left_padded,
    some_ids,
    spec_of,
)
from nn.tolerances import assert_near
from torch import Tensor

from worthit.cost.memory import Split, cache_bytes
from worthit.cost.params import count_params
from worthit.nn.decoder import build
from worthit.nn.depth.deep_equilibrium import (
    EquilibriumBlock,
    anderson,
    iterate,
    jacobian_penalty,
)
from worthit.nn.tokens import Tokens, tokens_of
from worthit.spec.model import Layer, Mamba

SOLVED = replace(LAYER, n_loops=60, shares_loop_cache=True)
MAMBA = Mamba(d_inner=64, d_state=8, d_conv=4, dt_rank=2)
POST = replace(SOLVED, placement="post")
SPEC = spec_of(SOLVED, is_equilibrium=True)
# Unrolled this often, what is left of a contraction's error is rounding.
N_UNROLLED = 150


def block_of(layer: Layer = SOLVED) -> EquilibriumBlock:
    # Small enough weights contract.
    block = built(spec_of(layer, is_equilibrium=True), std=0.04).layers[0]
    assert isinstance(block, EquilibriumBlock)
    return block


def pass_of(n: int) -> Tokens:
    return tokens_of(torch.zeros(2, n, dtype=torch.long), past=0, attention_mask=None)


@pytest.mark.parametrize("layer", [SOLVED, POST], ids=["pre", "post"])
@pytest.mark.parametrize("n", [1, 21])
def test_output_and_gradients_equal_a_long_unroll(n: int, layer: Layer) -> None:
    block = block_of(layer)
    x = torch.randn(2, n, D, requires_grad=True)
    tokens = pass_of(n)
    got = block(x, tokens)
    want = iterate(lambda z: block.step(z, x, tokens), x, N_UNROLLED)
    assert_near(got, want)
    assert_near(block.step(want, x, tokens), want)
    signal, leaves = torch.randn_like(x), [x, *block.parameters()]
    for a, b in zip(
        torch.autograd.grad((got * signal).sum(), leaves),
        torch.autograd.grad((want * signal).sum(), leaves),
        strict=True,
    ):
        assert_near(a, b)


def test_one_step_s_gradient_is_another() -> None:
    """The shortcut that libraries take by default is not what the module computes."""
    block, tokens = block_of(), pass_of(9)
    x = torch.randn(2, 9, D, requires_grad=True)
    z = block(x, tokens).detach()
    (shortcut,) = torch.autograd.grad(block.step(z, x, tokens).sum(), x)
    (right,) = torch.autograd.grad(block(x, tokens).sum(), x)
    assert (shortcut - right).abs().max() > 0.01 * right.abs().max()


def test_anderson_solves_a_linear_system_faster() -> None:
    torch.manual_seed(0)
    a = torch.randn(6, 6, dtype=torch.float64)
    a = 0.95 * a / torch.linalg.matrix_norm(a, 2)
    b = torch.randn(3, 6, dtype=torch.float64)
    want = torch.linalg.solve(torch.eye(6, dtype=torch.float64) - a, b.T).T

    def f(z: Tensor) -> Tensor:
        return z @ a.T + b

    mixed, plain = (m(f, torch.zeros_like(b), 20) - want for m in (anderson, iterate))
    assert mixed.abs().max() < 1e-4
    assert mixed.abs().max() < 0.1 * plain.abs().max()


@pytest.mark.parametrize(
    "mixer",
    [ATTENTION, replace(ATTENTION, window=8), Mamba(d_inner=64, d_state=8, d_conv=4, dt_rank=2)],
)
def test_decoding_equals_one_pass(mixer: object) -> None:
    spec = spec_of(replace(SOLVED, mixers=(mixer,)), is_equilibrium=True)
    model, ids = built(spec, std=0.04), some_ids(25)
    assert_near(in_pieces(model, ids, 10, 7), model(ids))
    padded, mask = left_padded(ids, 5)
    assert_near(in_pieces(model, padded, 10, mask=mask)[1, 5:], model(ids[1:, :-5])[0])


def test_is_causal() -> None:
    model, ids = built(SPEC, std=0.04), some_ids(40)
    changed = ids.clone()
    changed[:, 30:] = some_ids(10, seed=5)
    assert_near(model(changed)[:, :30], model(ids)[:, :30])


def test_cache_and_parameters_are_as_predicted() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build(SPEC).parameters()) == count_params(SPEC).total
    model = built(SPEC, std=0.04)
    cache = model.new_cache()
    with torch.no_grad():
        model(some_ids(20, batch=1), cache=cache)
    # The cost model counts bf16, the module runs in fp32.
    assert cache.nbytes == 20 * KV_ELEMENTS * 4
    assert cache.nbytes == 2 * cache_bytes(SPEC, Split(), 20).per_sequence


def test_the_penalty_estimates_the_jacobian() -> None:
    torch.manual_seed(0)
    a = torch.randn(8, 8)
    z = torch.randn(4000, 8)
    want = a.square().sum() / 8
    torch.testing.assert_close(jacobian_penalty(lambda z: z @ a.T, z), want, rtol=0.05, atol=0)
