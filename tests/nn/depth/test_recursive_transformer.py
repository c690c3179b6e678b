"""Recursive blocks against the plain model of the same depth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.depth.models import (
    ATTENTION,
    KV_ELEMENTS,
    LAYER,
    built,
    in_pieces,
    left_padded,
    some_ids,
    spec_of,
)
from nn.tolerances import assert_near
from torch import Tensor

from worthit.cost.params import count_params
from worthit.errors import SpecError
from worthit.nn.decoder import Block, Decoder, build
from worthit.nn.depth.recursive_transformer import Recursive
from worthit.nn.tokens import tokens_of
from worthit.spec.model import Mamba

LOOPED = replace(LAYER, n_loops=3)
SHARED = replace(LOOPED, shares_loop_cache=True)
SPEC = spec_of(LAYER, LOOPED)


def unrolled(model: Decoder) -> Decoder:
    """The plain model in which each application is a layer with a copy of the weights."""
    layers, copies = [], []
    for i, layer in enumerate(model.spec.layers):
        layers += [replace(layer, n_loops=1)] * layer.n_loops
        copies += [i] * layer.n_loops
    plain = build(replace(model.spec, layers=tuple(layers))).eval()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("layers.")}
    for j, i in enumerate(copies):
        for k, v in model.layers[i].state_dict().items():
            state[f"layers.{j}.{k}"] = v
    plain.load_state_dict(state)
    return plain


def test_is_the_plain_model_with_equal_layers() -> None:
    model, ids = built(SPEC), some_ids(63)
    plain = unrolled(model)
    got, want = model(ids), plain(ids)
    assert_near(got, want)
    signal = torch.randn_like(got)
    (got * signal).sum().backward()
    (want * signal).sum().backward()
    looped = dict(model.layers[1].named_parameters())
    for name, p in looped.items():
        total: Tensor = sum(dict(plain.layers[j].named_parameters())[name].grad for j in (1, 2, 3))
        assert_near(p.grad, total)


def test_one_loop_is_the_plain_block() -> None:
    model = built(spec_of(replace(LAYER, n_loops=1)))
    assert type(model.layers[0]) is Block


@pytest.mark.parametrize("layer", [LOOPED, SHARED], ids=["own caches", "shared cache"])
@pytest.mark.parametrize("lengths", [(), (20,), (7, 13)])
def test_decoding_equals_one_pass(layer: object, lengths: tuple[int, ...]) -> None:
    model, ids = built(spec_of(LAYER, layer)), some_ids(33)
    assert_near(in_pieces(model, ids, *lengths), model(ids))
    padded, mask = left_padded(ids, 5)
    got = in_pieces(model, padded, 10, mask=mask)
    assert_near(got[1, 5:], model(ids[1:, :-5])[0])


def test_a_window_may_be_shared() -> None:
    layer = replace(SHARED, mixers=(replace(ATTENTION, window=8),))
    model, ids = built(spec_of(layer)), some_ids(33)
    assert_near(in_pieces(model, ids, 20), model(ids))


def test_sharing_reads_the_first_applications_keys() -> None:
    block = built(spec_of(SHARED)).layers[0]
    assert isinstance(block, Recursive)
    x, tokens = (
        torch.randn(1, 9, 32),
        tokens_of(torch.zeros(1, 9, dtype=torch.long), past=0, attention_mask=None),
    )
    caches = block.new_caches()
    first = Block.forward(block, x, tokens, caches)
    k, v = caches[0].keys.value, caches[0].values.value

    class Fixed:
        is_observing = False

        def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            return k, v

    want = first
    for _ in range(2):
        want = Block.forward(block, want, tokens, [Fixed()])
    assert_near(block(x, tokens), want)


@pytest.mark.parametrize(("layer", "copies"), [(LOOPED, 3), (SHARED, 1)])
def test_cache_and_parameters_are_as_predicted(layer: object, copies: int) -> None:
    spec = spec_of(LAYER, layer)
    with torch.device("meta"):
        assert sum(p.numel() for p in build(spec).parameters()) == count_params(spec).total
    model = built(spec)
    cache = model.new_cache()
    model(some_ids(20, batch=1), cache=cache)
    assert cache.nbytes == 20 * KV_ELEMENTS * 4 * (1 + copies)


def test_states_cannot_be_shared() -> None:
    mamba = Mamba(d_inner=64, d_state=8, d_conv=4, dt_rank=2)
    with pytest.raises(SpecError, match="keep keys and values, got Mamba"):
        build(spec_of(replace(SHARED, mixers=(mamba,))))
    model = built(spec_of(replace(LOOPED, mixers=(mamba,))))
    ids = some_ids(20)
    assert_near(in_pieces(model, ids, 9), model(ids))
