"""Records of the norm family: sizes by hand, parameters held equal."""

from __future__ import annotations

import pytest
from reference_cases import CASES, llama_2_7b, mixtral, post_norm, tutor
from technique_cases import serving, training

from worthit.cost.params import count_params
from worthit.errors import NotApplicable
from worthit.techniques.norm import gelu, layernorm, pre_norm, qk_norm, relu, rmsnorm, swiglu

LLAMA = serving(llama_2_7b())
OLD = training(post_norm(), seq=512)


def total(case):
    return count_params(case.model).total


def test_a_layernorm_adds_a_bias_to_every_norm():
    # Two norms a layer and the last one, of 4096 channels.
    assert total(layernorm.apply(LLAMA)) - total(LLAMA) == (2 * 32 + 1) * 4096
    assert rmsnorm.apply(layernorm.apply(LLAMA)) == LLAMA
    with pytest.raises(NotApplicable, match="in place already"):
        rmsnorm.apply(LLAMA)


def test_pre_norm_adds_the_final_norm():
    after = pre_norm.apply(OLD)
    assert total(after) - total(OLD) == 2 * 512
    assert pre_norm.remove(after) == OLD


def test_qk_norm_adds_two_vectors_a_layer():
    after = qk_norm.apply(LLAMA)
    assert total(after) - total(LLAMA) == 32 * 2 * 128
    assert qk_norm.remove(after) == LLAMA
    with pytest.raises(NotApplicable, match="the latents are normalised already"):
        qk_norm.apply(CASES["mla-long"])


@pytest.mark.parametrize("module", [relu, gelu], ids=lambda m: m.TECHNIQUE.id)
def test_without_the_gate_the_feed_forward_is_half_as_wide_again(module):
    after = module.apply(LLAMA)
    (ffn,) = after.model.ffns
    assert (ffn.d_ff, ffn.is_gated) == (16512, False)
    assert total(after) == total(LLAMA)


def test_the_gate_takes_two_thirds_of_the_width():
    after = swiglu.apply(OLD)
    (ffn,) = after.model.ffns
    assert ffn.d_ff == 1368  # 2048 x 2/3 = 1365.3, to a multiple of 8
    assert total(after) == pytest.approx(total(OLD), rel=0.002)
    assert swiglu.remove(swiglu.apply(gelu.apply(LLAMA))) == gelu.apply(LLAMA)


def test_experts_change_their_activation_too():
    after = relu.apply(serving(mixtral()))
    (moe,) = after.model.ffns
    assert (moe.expert.d_ff, moe.expert.is_gated) == (21504, False)


def test_the_tutor_has_its_activation():
    case = serving(tutor(), prompt=16, output=16)
    assert gelu.is_present(case)
    assert not swiglu.is_present(case)
    (ffn,) = swiglu.apply(case).model.ffns
    assert ffn.d_ff == 512


@pytest.mark.parametrize("module", [relu, gelu, swiglu], ids=lambda m: m.TECHNIQUE.id)
def test_a_model_without_feed_forwards_has_no_activation(module):
    with pytest.raises(NotApplicable, match="this model has none: its layers are mamba"):
        module.apply(CASES["ssm-chat"])
