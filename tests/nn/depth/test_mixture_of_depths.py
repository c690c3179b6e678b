"""Mixture of depths against a loop over tokens, and its limits."""

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

from worthit.cost.params import count_params
from worthit.nn.decoder import Block, build
from worthit.nn.depth.mixture_of_depths import MixtureOfDepths, only_routers, router_loss
from worthit.nn.depth.selection import best
from worthit.nn.tokens import Tokens, tokens_of
from worthit.spec.model import Mamba, Position

ROUTED = replace(LAYER, token_fraction=0.25)
SPEC = spec_of(LAYER, ROUTED, LAYER)


def routed_block(seed: int = 0) -> MixtureOfDepths:
    block = built(spec_of(ROUTED), seed=seed).layers[0]
    assert isinstance(block, MixtureOfDepths)
    return block


def pass_of(n: int, batch: int = 2, mask: Tensor | None = None) -> Tokens:
    return tokens_of(torch.zeros(batch, n, dtype=torch.long), past=0, attention_mask=mask)


def slowly(block: MixtureOfDepths, x: Tensor, chosen: Tensor) -> Tensor:
    """Row by row: the chosen tokens, alone, with their own positions; equation 1."""
    out = []
    for row, is_in in zip(x, chosen, strict=True):
        index = [t for t in range(len(row)) if is_in[t]]
        tokens = Tokens(n=len(index), past=0, positions=torch.tensor([index]))
        f = Block.forward(block, row[index][None], tokens)[0] - row[index]
        new = [*row]
        for place, t in enumerate(index):
            new[t] = row[t] + (row[t] @ block.router.linear.weight[0]) * f[place]
        out.append(torch.stack(new))
    return torch.stack(out)


@pytest.mark.parametrize("n", [1, 40, 63])
def test_training_takes_the_best(n: int) -> None:
    block = routed_block().train()
    x = torch.randn(2, n, D, requires_grad=True)
    r = x @ block.router.linear.weight[0]
    chosen = torch.zeros(2, n, dtype=torch.bool)
    for b in range(2):
        for t in sorted(range(n), key=lambda t: -r[b, t].item())[: max(1, n // 4)]:
            chosen[b, t] = True
    got, want = block(x, pass_of(n)), slowly(block, x, chosen)
    assert_near(got, want)
    signal, leaves = torch.randn_like(x), [x, *block.parameters()]
    for a, b in zip(
        torch.autograd.grad((got * signal).sum(), leaves),
        torch.autograd.grad((want * signal).sum(), leaves),
        strict=True,
    ):
        assert_near(a, b)


@pytest.mark.parametrize("n", [1, 40, 63])
def test_evaluation_takes_those_over_the_threshold(n: int) -> None:
    block, x = routed_block(), torch.randn(2, n, D)
    chosen = x @ block.router.linear.weight[0] > 0
    assert_near(block(x, pass_of(n)), slowly(block, x, chosen))


@pytest.mark.parametrize("is_training", [True, False])
def test_every_token_and_weight_one_is_the_plain_block(is_training: bool) -> None:
    block = routed_block().train(is_training)
    block.spec = replace(block.spec, token_fraction=1.0)
    x = torch.randn(2, 30, D)
    x[..., 0] = 1.0
    with torch.no_grad():
        block.router.linear.weight.zero_()[0, 0] = 1.0
    assert_near(block(x, pass_of(30)), Block.forward(block, x, pass_of(30)))


@pytest.mark.parametrize("mixer", [ATTENTION, Mamba(d_inner=64, d_state=8, d_conv=4, dt_rank=2)])
@pytest.mark.parametrize("lengths", [(), (20,), (7, 13)])
def test_decoding_equals_one_pass(lengths: tuple[int, ...], mixer: object) -> None:
    layers = (LAYER, replace(ROUTED, mixers=(mixer,)))
    model, ids = built(spec_of(*layers)), some_ids(33)
    assert_near(in_pieces(model, ids, *lengths), model(ids))


@pytest.mark.parametrize("kind", ["alibi", "chunk", "relative-bias"])
def test_distances_are_those_of_the_sequence(kind: str) -> None:
    """Tokens left out between two others still count in how far apart these are."""
    attention = replace(ATTENTION, rotary_dim=0, chunk=8 if kind == "chunk" else None)
    position = Position(kind="rope" if kind == "chunk" else kind)
    layer = replace(ROUTED, mixers=(attention,))
    model, ids = built(spec_of(LAYER, layer, position=position), std=0.3), some_ids(33)
    want = model(ids)
    assert_near(in_pieces(model, ids, 12), want)
    block = model.layers[1]
    x, tokens = torch.randn(1, 20, D), pass_of(20, batch=1)
    tokens.relative_bias = model.relative_bias
    index = (block.router(x)[0] > 0).nonzero()[:, 0]
    # Everybody stands in line, and those left out are hidden as padding is.
    is_in = torch.zeros(1, 20, dtype=torch.bool)
    is_in[0, index] = True
    hidden = Tokens(
        n=20,
        past=0,
        positions=tokens.positions,
        is_real=is_in,
        relative_bias=model.relative_bias,
        slot_positions=tokens.positions,
    )
    f = Block.forward(block, x, hidden) - x
    got = block(x, tokens)
    assert_near(got[:, index], (x + block.router(x)[..., None] * f)[:, index])


def test_evaluation_is_causal_and_training_is_not() -> None:
    model, ids = built(SPEC), some_ids(40)
    changed = ids.clone()
    changed[:, 30:] = some_ids(10, seed=5)
    assert_near(model(changed)[:, :30], model(ids)[:, :30])
    model.train()
    assert (model(changed) - model(ids))[:, :30].abs().max() > 1e-3


@pytest.mark.parametrize("is_training", [True, False])
def test_padding_changes_nothing(is_training: bool) -> None:
    model, ids = built(SPEC).train(is_training), some_ids(40)
    padded, mask = left_padded(ids, 8)
    got = model(padded, attention_mask=mask)
    assert_near(got[0], model(ids)[0])
    assert_near(got[1, 8:], model(ids[1:, :-8])[0])
    if not is_training:
        assert_near(in_pieces(model, padded, 20, mask=mask)[1, 8:], got[1, 8:])


def test_cache_and_parameters_are_as_predicted() -> None:
    with torch.device("meta"):
        n_params = sum(p.numel() for p in build(SPEC).parameters())
    assert n_params == count_params(SPEC).total
    model, ids = built(SPEC), some_ids(64, batch=1)
    inside: list[Tensor] = []
    routed = model.layers[1]
    assert isinstance(routed, MixtureOfDepths)
    hook = routed.register_forward_pre_hook(lambda m, inputs: inside.append(inputs[0]))
    model(ids)
    hook.remove()
    routed.router.calibrate(inside[0], 0.25)
    cache = model.new_cache()
    model(ids, cache=cache)
    assert cache.nbytes == KV_ELEMENTS * 4 * (64 + 64 // 4 + 64)


def test_rows_can_be_selected() -> None:
    model, ids = built(SPEC), some_ids(20)
    cache = model.new_cache()
    model(ids, cache=cache)
    cache.select_rows(torch.tensor([1, 1, 0]))
    rows = torch.tensor([1, 1, 0])
    token = some_ids(1, batch=3)
    want = model(torch.cat([ids[rows], token], dim=1))[:, -1:]
    assert_near(model(token, cache=cache), want)


def test_the_threshold_can_be_learnt_with_a_frozen_backbone() -> None:
    model = built(SPEC)
    parameters = only_routers(model)
    assert sum(p.numel() for p in parameters) == D
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == D
    router = model.layers[1].router
    x = torch.randn(1, 400, D)
    target = best(x[..., 3], *[torch.ones(1, 400, dtype=torch.bool)] * 2, 0.25)
    optimizer = torch.optim.Adam(parameters, lr=0.3)
    for _ in range(100):
        optimizer.zero_grad()
        # One channel is shifted: the threshold is at zero, and a router has no bias.
        shifted = torch.cat([torch.ones_like(x[..., :1]), x[..., 1:]], dim=-1)
        router_loss(router(shifted), target).backward()
        optimizer.step()
    assert ((router(shifted) > 0) == target).float().mean() > 0.97
