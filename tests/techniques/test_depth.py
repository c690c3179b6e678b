"""Records of the depth family: layers kept, loops, shares of tokens, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from technique_cases import attention_layer, llama_8b, one_layer, serving, training

from worthit.cost.params import count_params
from worthit.errors import NotApplicable
from worthit.techniques.depth import (
    deep_equilibrium,
    early_exit,
    mixture_of_depths,
    mixture_of_recursions,
    recursive_transformer,
)
from worthit.techniques.depth._loop import depth, spread
from worthit.techniques.depth._tokens import tokens_for_fewer_params
from worthit.techniques.optimizer import muon

ALL = (
    deep_equilibrium,
    early_exit,
    mixture_of_depths,
    mixture_of_recursions,
    recursive_transformer,
)
LAYER = 218_112_000  # parameters of one layer of Llama 3.1 8B, norms included
AROUND = 2 * 128256 * 4096 + 4096


@pytest.mark.parametrize("module", ALL, ids=lambda m: m.TECHNIQUE.id)
def test_each_is_told_from_the_others(module):
    case = serving()
    after = module.apply(case)
    assert [m.TECHNIQUE.id for m in ALL if m.is_present(after)] == [module.TECHNIQUE.id]
    assert not any(m.is_present(case) for m in ALL)


@pytest.mark.parametrize(
    "module", [early_exit, mixture_of_depths, recursive_transformer], ids=lambda m: m.TECHNIQUE.id
)
def test_taken_out_again(module):
    case = serving()
    assert module.TECHNIQUE.remove(module.apply(case)) == case


def test_every_other_layer_lets_an_eighth_through():
    layers = mixture_of_depths.apply(serving()).model.layers
    assert [x.token_fraction for x in layers] == [1.0, 0.125] * 16
    # Parameters are held but for a router of 4096 in 16 layers.
    grown = count_params(mixture_of_depths.apply(serving()).model).total
    assert grown == count_params(llama_8b()).total + 16 * 4096
    # Layers passed by a token on average: 16 + 16 / 8 of 32.
    assert sum(x.token_fraction for x in layers) == 18


def test_routed_layers_share_one_object():
    layers = mixture_of_depths.apply(training()).model.layers
    assert len({id(x) for x in layers}) == 2


def test_odd_depth_keeps_its_last_layer_whole():
    layers = mixture_of_depths.apply(serving(llama_8b(n_layers=5))).model.layers
    assert [x.token_fraction for x in layers] == [1, 0.125, 1, 0.125, 1]


@pytest.mark.parametrize(("n_loops", "n_unique"), [(2, 16), (4, 8), (3, 12)])
def test_recursion_keeps_depth_and_drops_parameters(n_loops, n_unique):
    # 32 = 3 x 10 + 2: ten tied layers and two single ones.
    after = recursive_transformer.apply(serving(), n_loops=n_loops)
    assert depth(after) == 32
    assert after.model.n_layers == n_unique
    assert count_params(after.model).total == n_unique * LAYER + AROUND


def test_mixture_of_recursions_has_a_third_of_the_layers_and_two_thirds_of_the_passes():
    after = mixture_of_recursions.apply(serving())
    first, *middle, last = after.model.layers
    assert (first.n_loops, last.n_loops) == (1, 1)
    assert [x.n_loops for x in middle] == [3] * 10
    assert [x.token_fraction for x in middle] == pytest.approx([(1 + 2 / 3 + 1 / 3) / 3] * 10)
    assert depth(after) == 32
    passes = sum(x.n_loops * x.token_fraction for x in after.model.layers)
    assert passes == pytest.approx(2 + 30 * 2 / 3)
    assert count_params(after.model).total == 12 * LAYER + AROUND + 30 * 4096  # a router a pass


def test_mixture_of_recursions_may_share_its_cache():
    shared = mixture_of_recursions.apply(serving(), shares_cache=True).model.layers
    assert [x.shares_loop_cache for x in shared] == [False] + [True] * 10 + [False]


def test_unrolling_gives_the_depth_back_for_every_token():
    case = serving()
    assert mixture_of_recursions.TECHNIQUE.remove(mixture_of_recursions.apply(case)) == case


def test_kinds_of_layers_keep_their_share():
    local = attention_layer(d_ff=100)
    full = attention_layer(d_ff=200)
    kept = spread((local, full) * 8, 8)
    assert (kept[0], kept[-1]) == (local, full)
    assert kept.count(local) == kept.count(full) == 4


def test_exits_after_each_quarter():
    exits = early_exit.apply(serving()).model.early_exit
    assert exits.layers == (8, 16, 24)
    assert 0 < exits.low < exits.mean_depth < exits.high < 1


def test_equilibrium_is_one_layer_with_one_cache():
    after = deep_equilibrium.apply(training())
    (layer,) = after.model.layers
    assert after.model.is_equilibrium
    assert (layer.n_loops, layer.shares_loop_cache) == (32, True)
    assert count_params(after.model).total == LAYER + AROUND
    assert deep_equilibrium.TECHNIQUE.remove is None


def test_equilibrium_of_a_shallow_model_iterates_all_the_same():
    (layer,) = deep_equilibrium.apply(serving(one_layer())).model.layers
    assert layer.n_loops == 30


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (mixture_of_depths, "one of every 2 layers, got 1 in all; it needs 2 or more"),
        (recursive_transformer, "ties 2 layers to one, got 1 in all; it needs 2 or more"),
        (mixture_of_recursions, "ties 3 between them, got 1 in all; it needs 5 or more"),
        (early_exit, "after a quarter of the layers at the earliest, got 1; it needs 4 or more"),
    ],
)
def test_one_layer_has_no_depth_to_save(module, message):
    with pytest.raises(NotApplicable, match=message):
        module.apply(serving(one_layer()))


@pytest.mark.parametrize("module", [recursive_transformer, mixture_of_recursions])
def test_loops_are_not_looped_again(module):
    looped = recursive_transformer.apply(serving())
    with pytest.raises(NotApplicable, match="llama-8b loops some already"):
        module.apply(looped)


def test_equilibria_are_not_solved_twice():
    with pytest.raises(NotApplicable, match="llama-8b at equilibrium already"):
        deep_equilibrium.apply(deep_equilibrium.apply(serving()))


def test_training_goes_through_every_layer():
    with pytest.raises(NotApplicable, match="early-exit acts when a model is served"):
        early_exit.apply(training())


def test_layers_routed_already_are_not_routed_again():
    case = mixture_of_depths.apply(serving())
    with pytest.raises(NotApplicable, match="loops or routes them already"):
        mixture_of_depths.apply(case)
    looped = replace(llama_8b(), layers=(replace(attention_layer(), n_loops=2),) * 4)
    with pytest.raises(NotApplicable, match="loops or routes them already"):
        mixture_of_depths.apply(serving(looped))


@pytest.mark.parametrize(
    ("module", "most"),
    [
        (mixture_of_depths, 32 / 18),  # 18 of 32 layers passed
        (mixture_of_recursions, 32 / 22),  # 2 + 30 x 2 / 3
    ],
)
def test_training_saves_at_most_what_equal_flops_give_back(module, most):
    needed = module.apply(training()).runtime.tokens_to_target
    assert (needed.low, needed.high) == (1, pytest.approx(most))
    assert needed.mid == pytest.approx(most**0.5)
    assert module.apply(serving()).runtime.tokens_to_target is None


def test_chinchilla_asks_more_tokens_of_fewer_parameters():
    # Loss with A = 406.4, B = 410.7 (Hoffmann et al. 2022, equation 10) at a compute-optimal
    # N = 8e9: D from alpha A / N^alpha = beta B / D^beta, then D' by trial for half of N.
    a, b, alpha, beta, n = 406.4, 410.7, 0.34, 0.28, 8e9
    d = (beta * b * n**alpha / (alpha * a)) ** (1 / beta)
    target = a / n**alpha + b / d**beta
    grown = next(
        x / 1000
        for x in range(1000, 9000)
        if a / (n / 2) ** alpha + b / (d * x / 1000) ** beta <= target
    )
    assert tokens_for_fewer_params(2) == pytest.approx(grown, rel=0.01)
    assert tokens_for_fewer_params(1) == 1


def test_recursion_needs_up_to_what_chinchilla_asks():
    needed = recursive_transformer.apply(training()).runtime.tokens_to_target
    ratio = (32 * LAYER + AROUND) / (16 * LAYER + AROUND)
    assert (needed.low, needed.high) == (1, pytest.approx(tokens_for_fewer_params(ratio)))


def test_no_number_of_tokens_makes_up_for_one_layer_of_many():
    with pytest.raises(NotApplicable, match="which no number of tokens makes up for"):
        recursive_transformer.apply(training(replace(llama_8b(), vocab_size=1000)), n_loops=32)


@pytest.mark.parametrize(
    "module", [mixture_of_depths, mixture_of_recursions, recursive_transformer]
)
def test_tokens_come_back_with_any_optimizer(module):
    plain = training()
    assert module.remove(module.apply(plain)) == plain
    orthogonal = muon.apply(plain)
    restored = module.remove(module.apply(orthogonal)).runtime.tokens_to_target
    expected = orthogonal.runtime.tokens_to_target
    assert (restored.mid, restored.high) == pytest.approx((expected.mid, expected.high))
