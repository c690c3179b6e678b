"""Records of the attention family against sums done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from reference_cases import CASES, deepseek, llama_2_7b, tutor
from technique_cases import llama_8b, serving

from worthit.cost.cache import cache_elements
from worthit.cost.params import count_params, mixer_params
from worthit.errors import NotApplicable
from worthit.spec.model import Attention, LatentAttention, LinearAttention
from worthit.techniques.attention import (
    delta_rule,
    flash_attention,
    gated_linear_attention,
    gqa,
    linear_attention,
    low_rank_attention,
    mha,
    mla,
    mqa,
    sliding_window,
    sparse_attention,
)

MHA = serving(llama_2_7b())
GQA = serving(llama_8b())
TUTOR = serving(tutor(), prompt=16, output=16)
LATENT = serving(deepseek())


def only_mixer(case):
    (mixer,) = case.model.mixers
    return mixer


def test_gqa_takes_groups_of_four():
    # 32 heads in groups of 4: 8 key/value heads, as Llama 3.1 8B has.
    after = gqa.apply(MHA)
    assert only_mixer(after).n_kv_heads == 8
    # Each layer loses 2 x 4096 x (32 - 8) x 128 parameters.
    lost = count_params(MHA.model).total - count_params(after.model).total
    assert lost == 32 * 2 * 4096 * 24 * 128
    assert gqa.remove(after) == MHA


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(6, 2), (25, 5), (12, 3), (14, 7), (4, 2)])
def test_gqa_without_a_size_takes_the_nearest_divisor(n_heads, n_kv_heads):
    case = serving(tutor())
    mixer = replace(only_mixer(case), n_heads=n_heads, n_kv_heads=n_heads)
    case = replace(case, model=case.model.map_mixers(lambda _: mixer))
    assert only_mixer(gqa.apply(case)).n_kv_heads == n_kv_heads


def test_gqa_at_its_limits_is_mha_and_mqa():
    assert gqa.apply(MHA, group_size=1) == MHA
    assert gqa.apply(MHA, group_size=32) == mqa.apply(MHA)


@pytest.mark.parametrize("size", [5, 0, -4])
def test_gqa_refuses_a_size_that_does_not_divide(size):
    with pytest.raises(NotApplicable, match=f"group_size={size} divides.*got query/kv heads 32/32"):
        gqa.apply(MHA, group_size=size)


def test_mha_copies_heads_and_mqa_merges_them():
    assert only_mixer(mha.apply(GQA)).n_kv_heads == 32
    assert only_mixer(mqa.apply(GQA)).n_kv_heads == 1
    assert mha.apply(mqa.apply(MHA)) == MHA
    with pytest.raises(NotApplicable, match="has one already"):
        mqa.apply(mqa.apply(MHA))


@pytest.mark.parametrize("module", [mha, mqa, gqa, sliding_window, sparse_attention])
def test_latent_attention_has_no_heads_to_share_or_cap(module):
    with pytest.raises(NotApplicable, match="latent attention: "):
        module.apply(LATENT)


def test_mla_caches_the_latent_and_one_rotary_key():
    mixer = only_mixer(mla.apply(MHA))
    # DeepSeek-V2's numbers for heads of 128.
    assert (mixer.kv_lora_rank, mixer.qk_rope_head_dim) == (512, 64)
    # r + d_rope against 2 x 32 x 128: 14 times fewer.
    assert cache_elements(mixer, 4096).per_token == 576
    assert cache_elements(only_mixer(MHA), 4096).per_token == 8192
    # q 4096 x 32 x 192; down 4096 x 576; norm 512; up 512 x 32 x 256; out 4096 x 4096.
    assert mixer_params(mixer, 4096) == 25_165_824 + 2_359_296 + 512 + 4_194_304 + 16_777_216


def test_mla_without_rotation_keeps_no_channel_for_it():
    mixer = only_mixer(mla.apply(TUTOR))
    assert cache_elements(mixer, 192).per_token == 4 * 32


def test_mla_leaves_local_layers_alone():
    after = mla.apply(sliding_window.apply(MHA))
    kinds = [type(layer.mixers[0]) for layer in after.model.layers]
    assert kinds.count(LatentAttention) == 5  # layers 6, 12, 18, 24 and 30 of 32
    with pytest.raises(NotApplicable, match="at most 64 keys"):
        mla.apply(sliding_window.apply(MHA, window=64, global_every=0))


def test_mla_removed_is_the_multi_head_attention_it_came_from():
    assert mla.remove(mla.apply(MHA)) == MHA


@pytest.mark.parametrize("module", [linear_attention, gated_linear_attention, delta_rule])
@pytest.mark.parametrize("name", ["mha-chat", "gqa-chat", "mla-long", "moe-chat", "tutor-serving"])
def test_linear_mixers_hold_as_many_parameters(module, name):
    case = CASES[name]
    after = module.apply(case)
    assert any(isinstance(m, LinearAttention) for m in after.model.mixers)
    assert not any(isinstance(m, Attention | LatentAttention) for m in after.model.mixers)
    was, now = count_params(case.model).total, count_params(after.model).total
    assert now == pytest.approx(was, rel=0.025)
    back = count_params(module.remove(after).model).total
    assert back == pytest.approx(was, rel=0.04)


def test_linear_attention_of_full_heads_is_exactly_as_large():
    # Four matrices of 4096 x 4096 before and after: 32 heads stay 32.
    mixer = only_mixer(linear_attention.apply(MHA))
    assert mixer.n_value_heads == 32
    # The state, and the sum of keys that normalises.
    assert cache_elements(mixer, 4096).fixed == 32 * 128 * 128 + 32 * 128
    assert cache_elements(mixer, 4096).per_token == 0


def test_grouped_attention_gives_fewer_linear_heads():
    # 2 x 4096 x (4096 + 1024) parameters over 4 x 4096 x 128 a head.
    assert only_mixer(linear_attention.apply(GQA)).n_value_heads == 20


def test_the_plain_delta_rule_has_no_gate():
    mixer = only_mixer(delta_rule.apply(MHA, is_gated=False))
    assert mixer.kind == "delta"
    assert not mixer.has_output_gate


def test_low_rank_only_where_nothing_is_generated():
    reading = serving(llama_2_7b(), output=1)
    after = low_rank_attention.apply(reading)
    assert {m.low_rank for m in after.model.mixers} == {256}
    grown = count_params(after.model).total - count_params(reading.model).total
    assert grown == 4096 * 256
    assert low_rank_attention.remove(after) == reading
    with pytest.raises(NotApplicable, match="future tokens included, and this model generates 200"):
        low_rank_attention.apply(MHA)
    with pytest.raises(NotApplicable, match="trained to predict each next token"):
        low_rank_attention.apply(CASES["mha-training"])


def test_five_layers_in_six_are_local():
    after = sliding_window.apply(MHA)
    windows = [layer.mixers[0].window for layer in after.model.layers]
    assert windows[:7] == [1024, 1024, 1024, 1024, 1024, None, 1024]
    assert windows.count(None) == 5
    assert sliding_window.remove(after) == MHA
    assert len(after.model.layer_kinds) == 2


def test_a_short_stack_keeps_its_last_layer_global():
    short = replace(MHA, model=replace(MHA.model, layers=MHA.model.layers[:4]))
    windows = [x.mixers[0].window for x in sliding_window.apply(short).model.layers]
    assert windows == [1024, 1024, 1024, None]


def test_local_layers_are_not_made_local_again():
    with pytest.raises(NotApplicable, match=r"in place already: some layers see at most \[1024\]"):
        sliding_window.apply(sliding_window.apply(MHA))


def test_sparse_attention_caches_every_key():
    before, after = only_mixer(MHA), only_mixer(sparse_attention.apply(MHA))
    assert after.sparse_keys == 2048
    assert cache_elements(after, 4096) == cache_elements(before, 4096)


def test_flash_attention_changes_the_runtime_alone():
    naive = CASES["mha-naive"]
    after = flash_attention.apply(naive)
    assert after.model is naive.model
    assert flash_attention.remove(after) == naive
    with pytest.raises(NotApplicable, match="softmax attention"):
        flash_attention.apply(CASES["ssm-chat"])
