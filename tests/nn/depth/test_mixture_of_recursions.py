"""Mixture of recursions against a loop over steps and tokens, and its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.depth.models import KV_ELEMENTS, LAYER, D, built, in_pieces, left_padded, some_ids, spec_of
from nn.tolerances import assert_near
from torch import Tensor

from worthit.cost.params import count_params
from worthit.nn.decoder import Block, build
from worthit.nn.depth.mixture_of_recursions import Chooser, MixtureOfRecursions
from worthit.nn.depth.selection import RowCaches
from worthit.nn.tokens import Tokens, tokens_of

ROUTED = replace(LAYER, n_loops=3, token_fraction=2 / 3)
SHARED = replace(ROUTED, shares_loop_cache=True)
SPEC = spec_of(LAYER, ROUTED, LAYER)


def routed_block(layer: object = ROUTED, chooser: Chooser = "expert") -> MixtureOfRecursions:
    block = built(spec_of(layer)).layers[0]
    assert isinstance(block, MixtureOfRecursions)
    block.chooser = chooser
    return block


def slowly(block: MixtureOfRecursions, x: Tensor, is_best: bool) -> Tensor:
    """Row by row and step by step, on the survivors alone."""
    out = []
    for row in x:
        active = list(range(len(row)))
        first = [torch.stack([r(row) for r in block.routers], dim=-1)[t] for t in active]
        for step in range(3):
            r = row @ block.routers[step].linear.weight[0]
            if step and block.chooser == "token":
                active = [t for t in active if int(first[t].argmax()) >= step]
            elif step and is_best:
                n_kept = max(1, len(row) * (3 - step) // 3)
                active = sorted(sorted(active, key=lambda t: -r[t].item())[:n_kept])
            elif step:
                active = [t for t in active if r[t] > 0]
            if not active:
                break
            tokens = Tokens(n=len(active), past=0, positions=torch.tensor([active]))
            f = Block.forward(block, row[active][None], tokens)[0] - row[active]
            new = [*row]
            for place, t in enumerate(active):
                new[t] = row[t] + r[t].sigmoid() * f[place]
            row = torch.stack(new)
        out.append(row)
    return torch.stack(out)


def pass_of(n: int) -> Tokens:
    return tokens_of(torch.zeros(2, n, dtype=torch.long), past=0, attention_mask=None)


@pytest.mark.parametrize("chooser", ["expert", "token"])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("n", [1, 30, 63])
def test_equals_the_loop(n: int, is_training: bool, chooser: Chooser) -> None:
    block = routed_block(chooser=chooser).train(is_training)
    x = torch.randn(2, n, D, requires_grad=True)
    got, want = block(x, pass_of(n)), slowly(block, x, is_training)
    assert_near(got, want)
    signal, leaves = torch.randn_like(x), [x, *block.parameters()]
    for a, b in zip(
        torch.autograd.grad((got * signal).sum(), leaves, allow_unused=True),
        torch.autograd.grad((want * signal).sum(), leaves, allow_unused=True),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if b is not None:
            assert_near(a, b)


def test_capacities_fall_evenly_to_the_spec_s_mean() -> None:
    block = routed_block().train()
    assert [block.capacity(step) for step in range(3)] == pytest.approx([1, 2 / 3, 1 / 3])
    caches = block.new_caches()
    block(torch.randn(2, 30, D), pass_of(30), caches)
    lengths = [[p.shape[1] for p in c.positions] for c in caches if isinstance(c, RowCaches)]
    assert lengths == [[30, 30], [20, 20], [10, 10]]


def test_steps_are_nested() -> None:
    block = routed_block()
    caches = block.new_caches()
    block(torch.randn(2, 40, D), pass_of(40), caches)
    for row in range(2):
        kept = [set(c.positions[row][0].tolist()) for c in caches if isinstance(c, RowCaches)]
        assert kept[0] >= kept[1] >= kept[2]
        assert len(kept[0]) == 40


@pytest.mark.parametrize("chooser", ["expert", "token"])
@pytest.mark.parametrize("layer", [ROUTED, SHARED], ids=["own caches", "shared cache"])
@pytest.mark.parametrize("lengths", [(), (20,), (7, 13)])
def test_decoding_equals_one_pass(
    lengths: tuple[int, ...], layer: object, chooser: Chooser
) -> None:
    model, ids = built(spec_of(LAYER, layer)), some_ids(33)
    model.layers[1].chooser = chooser
    assert_near(in_pieces(model, ids, *lengths), model(ids))
    padded, mask = left_padded(ids, 5)
    assert_near(in_pieces(model, padded, 10, mask=mask)[1, 5:], model(ids[1:, :-5])[0])


def test_evaluation_and_token_choice_are_causal() -> None:
    ids, changed = some_ids(40), some_ids(40)
    changed[:, 30:] = some_ids(10, seed=5)
    for chooser, is_training in (("expert", False), ("token", False), ("token", True)):
        model = built(SPEC).train(is_training)
        model.layers[1].chooser = chooser
        assert_near(model(changed)[:, :30], model(ids)[:, :30])
    model = built(SPEC).train()
    assert (model(changed) - model(ids))[:, :30].abs().max() > 1e-3


def test_every_token_and_weight_one_is_the_recursive_block() -> None:
    block = routed_block()
    x = torch.randn(2, 30, D)
    x[..., 0] = 1.0
    with torch.no_grad():
        for router in block.routers:
            router.linear.weight.zero_()[0, 0] = 200.0
    # The block writes to channel 0 too; what stays positive and large keeps the sigmoid at one.
    with torch.no_grad():
        for m in (block.mixers[0].o_proj, block.ffn.down):
            m.weight[0] = 0.0
    want = x
    for _ in range(3):
        want = Block.forward(block, want, pass_of(30))
    assert_near(block(x, pass_of(30)), want)


@pytest.mark.parametrize(("layer", "tokens"), [(ROUTED, 60 + 40 + 20), (SHARED, 60)])
def test_cache_and_parameters_are_as_predicted(layer: object, tokens: int) -> None:
    spec = spec_of(LAYER, layer)
    with torch.device("meta"):
        assert sum(p.numel() for p in build(spec).parameters()) == count_params(spec).total
    model = built(spec).train()
    cache = model.new_cache()
    model(some_ids(60, batch=1), cache=cache)
    assert cache.nbytes == KV_ELEMENTS * 4 * (60 + tokens)
