"""Records of the mixture family against sums done by hand."""

from __future__ import annotations

import pytest
from reference_cases import CASES, llama_2_7b, mixtral
from technique_cases import serving, training

from worthit.cost.params import count_params, ffn_params
from worthit.errors import NotApplicable
from worthit.techniques.moe import (
    aux_free_balancing,
    expert_choice,
    shared_experts,
    soft_gating,
    switch,
    topk_moe,
)

DENSE = serving(llama_2_7b())
MIXTURE = serving(mixtral())
FFN = 3 * 4096 * 11008
ROUTER = 4096 * 8


def only_ffn(case):
    (ffn,) = case.model.ffns
    return ffn


def test_topk_holds_twice_the_feed_forward_and_uses_half():
    moe = only_ffn(topk_moe.apply(DENSE))
    assert moe.expert.d_ff == 11008 // 4  # sqrt(8 x 2) = 4
    count = ffn_params(moe, 4096)
    assert count.total == 2 * FFN + ROUTER
    assert count.active == FFN // 2 + ROUTER


def test_topk_and_back_is_the_dense_layer():
    assert topk_moe.remove(topk_moe.apply(DENSE)) == DENSE


def test_mixtral_is_worth_a_dense_layer_four_times_as_wide():
    # sqrt(8 x 2) = 4: total 8 and active 2 layers of 14336.
    assert only_ffn(topk_moe.remove(MIXTURE)).d_ff == 4 * 14336


def test_all_experts_of_a_dropless_mixture_is_the_dense_width():
    moe = only_ffn(topk_moe.apply(DENSE, n_experts=4, per_token=4))
    assert 4 * moe.expert.d_ff == 11008
    assert ffn_params(moe, 4096).total == ffn_params(moe, 4096).active


def test_switch_sends_each_token_to_one_expert():
    moe = only_ffn(switch.apply(DENSE))
    assert (moe.n_experts_per_token, moe.capacity_factor) == (1, 1.25)
    # sqrt(8) = 2.83: 2.83 times the parameters, 1 / 2.83 of the compute.
    assert moe.expert.d_ff == 3888  # 11008 / 2.828 = 3891.9, to the nearest multiple of 8
    assert not topk_moe.is_present(switch.apply(DENSE))


def test_soft_gating_costs_only_its_gate():
    after = soft_gating.apply(DENSE)
    grown = count_params(after.model).total - count_params(DENSE.model).total
    assert grown == 32 * ROUTER
    assert count_params(after.model).active == count_params(after.model).total
    assert soft_gating.remove(after) == DENSE


@pytest.mark.parametrize("module", [topk_moe, switch, soft_gating])
def test_a_mixture_is_not_mixed_again(module):
    with pytest.raises(NotApplicable, match="a mixture already: tokens use 2 of 8"):
        module.apply(MIXTURE)


@pytest.mark.parametrize(("n_experts", "per_token"), [(1, 1), (8, 9), (8, 0)])
def test_counts_that_make_no_mixture_are_refused(n_experts, per_token):
    with pytest.raises(NotApplicable, match=f"got n_experts={n_experts} and {per_token} a token"):
        topk_moe.apply(DENSE, n_experts=n_experts, per_token=per_token)


def test_expert_choice_cannot_generate():
    with pytest.raises(NotApplicable, match="200 tokens are generated one by one"):
        expert_choice.apply(MIXTURE)
    after = expert_choice.apply(training(mixtral()))
    assert only_ffn(after).routing == "expert-choice"
    assert expert_choice.remove(after) == training(mixtral())


def test_a_shared_expert_takes_the_place_of_a_routed_one():
    after = shared_experts.apply(MIXTURE)
    moe = only_ffn(after)
    assert (moe.n_experts, moe.n_experts_per_token, moe.shared.d_ff) == (8, 1, 14336)
    was, now = count_params(MIXTURE.model), count_params(after.model)
    assert now.active == was.active
    assert now.total - was.total == 32 * 3 * 4096 * 14336
    assert shared_experts.remove(after) == MIXTURE
    with pytest.raises(NotApplicable, match="tokens here use 2 of 8"):
        shared_experts.apply(MIXTURE, n_shared=2)


def test_a_bias_balances_only_what_tokens_choose():
    after = aux_free_balancing.apply(MIXTURE)
    assert only_ffn(after).balance == "bias"
    assert aux_free_balancing.remove(after) == MIXTURE
    with pytest.raises(NotApplicable, match="soft routing balances the experts by construction"):
        aux_free_balancing.apply(soft_gating.apply(DENSE))
    with pytest.raises(NotApplicable, match=r"has none.*apply topk-moe first"):
        aux_free_balancing.apply(DENSE)


def test_dense_layers_before_the_experts_stay():
    after = topk_moe.remove(CASES["mla-long"])
    # Total 64 x 1408 + 2816 and active 6 x 1408 + 2816: sqrt(92928 x 11264) = 32353.5.
    assert {ffn.d_ff for ffn in after.model.ffns} == {10944, 32352}
