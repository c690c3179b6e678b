"""Records of the position family: tables, limits and stretches."""

from __future__ import annotations

from dataclasses import replace

import pytest
from reference_cases import CASES, llama_2_7b, tutor
from technique_cases import llama_8b, serving

from worthit.cost.params import count_params
from worthit.errors import NotApplicable
from worthit.spec.model import PositionScaling
from worthit.techniques.position import (
    alibi,
    learned_positions,
    longrope,
    nope,
    ntk_scaling,
    position_interpolation,
    relative_bias,
    rope,
    sinusoidal,
    yarn,
)

SCHEMES = [alibi, learned_positions, nope, relative_bias, rope, sinusoidal]
STRETCHES = [longrope, ntk_scaling, position_interpolation, yarn]
LLAMA = serving(llama_2_7b())


def test_a_learned_table_has_a_row_for_each_token_of_the_context():
    after = learned_positions.apply(LLAMA)
    assert count_params(after.model).total - count_params(LLAMA.model).total == 4096 * 4096
    assert rope.apply(after) == LLAMA


def test_a_relative_bias_has_32_numbers_a_head():
    after = relative_bias.apply(LLAMA)
    assert count_params(after.model).total - count_params(LLAMA.model).total == 32 * 32
    assert rope.apply(after) == LLAMA


def test_the_tutor_without_its_table_is_smaller():
    before = serving(tutor(), prompt=16, output=16)
    for module in (alibi, rope, sinusoidal, nope):
        after = module.apply(before)
        assert count_params(before.model).total - count_params(after.model).total == 32 * 192


@pytest.mark.parametrize("module", [alibi, learned_positions, relative_bias, sinusoidal])
def test_order_cannot_pass_a_latent_cache(module):
    with pytest.raises(NotApplicable, match="alternatives there are rope and nope"):
        module.apply(CASES["mla-long"])


def test_latent_attention_without_positions_has_no_rotary_channels():
    after = nope.apply(CASES["mla-long"])
    assert {m.qk_rope_head_dim for m in after.model.mixers} == {0}
    assert {m.qk_rope_head_dim for m in nope.remove(after).model.mixers} == {64}


@pytest.mark.parametrize("module", SCHEMES, ids=lambda m: m.TECHNIQUE.id)
def test_recurrent_layers_read_in_order_anyway(module):
    with pytest.raises(NotApplicable, match="read the tokens one after the other"):
        module.apply(CASES["ssm-chat"])


@pytest.mark.parametrize("module", SCHEMES, ids=lambda m: m.TECHNIQUE.id)
def test_a_scheme_is_applied_once(module):
    source = sinusoidal.apply(LLAMA) if module is rope else LLAMA
    after = module.apply(source)
    with pytest.raises(NotApplicable, match="in place already"):
        module.apply(after)


def test_nope_in_every_fourth_layer():
    after = nope.apply(LLAMA, every=4)
    free = [i for i, x in enumerate(after.model.layers) if x.mixers[0].is_position_free]
    assert free == [3, 7, 11, 15, 19, 23, 27, 31]
    assert nope.remove(after) == LLAMA


@pytest.mark.parametrize("module", [longrope, position_interpolation, yarn])
@pytest.mark.parametrize(("needed", "factor"), [(4096, 1), (4097, 2), (8192, 2), (30_500, 8)])
def test_the_stretch_is_the_power_of_two_that_is_needed(module, needed, factor):
    case = serving(llama_2_7b(), prompt=needed - 1, output=1)
    after = module.apply(case)
    scaling = after.model.position.scaling
    assert (scaling.factor, scaling.original_context_len) == (factor, 4096)
    assert after.model.context_len == 4096 * factor
    assert count_params(after.model) == count_params(case.model)
    assert module.remove(after) == case


def test_a_raised_base_without_training_stops_at_four():
    case = serving(llama_2_7b(), prompt=30_000, output=500)
    assert ntk_scaling.apply(case).model.context_len == 16_384
    assert ntk_scaling.apply(case, max_factor=8).model.context_len == 32_768
    assert ntk_scaling.apply(case, is_dynamic=True).model.position.scaling.kind == "dynamic"


def test_a_scaled_model_is_stretched_from_where_it_was_trained():
    model = llama_8b()
    scaling = PositionScaling(kind="llama3", factor=8, original_context_len=8192)
    model = replace(model, position=replace(model.position, scaling=scaling))
    after = yarn.apply(serving(model, prompt=200_000, output=100))
    assert after.model.context_len == 262_144
    assert after.model.position.scaling.factor == 32
    # Nothing needed: the scaled context stays and only the method changes.
    same = yarn.apply(serving(model))
    assert same.model.context_len == 131_072
    assert same.model.position.scaling.factor == 16


def test_a_stretch_in_place_grows_only_when_it_must():
    long = yarn.apply(serving(llama_2_7b(), prompt=8000, output=100))
    with pytest.raises(NotApplicable, match=r"stretched by 2 to 8192 tokens, and sequences have"):
        yarn.apply(long)
    longer = replace(long, workload=replace(long.workload, prompt=10_000))
    assert yarn.apply(longer).model.context_len == 16_384


@pytest.mark.parametrize("module", STRETCHES, ids=lambda m: m.TECHNIQUE.id)
@pytest.mark.parametrize("name", ["tutor-serving", "hybrid-long", "post-norm-training"])
def test_only_rotary_positions_stretch(module, name):
    with pytest.raises(NotApplicable, match="only a model with rope can be extended so"):
        module.apply(CASES[name])
