"""Records of the state-space family against sums done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from reference_cases import CASES, jamba, llama_2_7b, pure_mamba, tutor
from technique_cases import llama_8b, serving

from worthit.cost.cache import cache_elements
from worthit.cost.params import count_params
from worthit.errors import NotApplicable
from worthit.spec.model import (
    Attention,
    ChannelMix,
    EarlyExit,
    FeedForward,
    LatentAttention,
    Layer,
    LinearAttention,
    Mamba,
    Mamba2,
)
from worthit.techniques.ssm import hybrid, mamba, mamba2, rwkv, s4

MHA = serving(llama_2_7b())
GQA = serving(llama_8b())
PURE = [mamba, mamba2, rwkv, s4]


@pytest.mark.parametrize("module", PURE, ids=lambda m: m.TECHNIQUE.id)
@pytest.mark.parametrize(
    "name", ["mha-chat", "gqa-chat", "moe-chat", "mla-long", "tutor-serving", "post-norm-training"]
)
def test_parameters_stay_within_a_few_percent(module, name):
    case = CASES[name]
    after = module.apply(case)
    assert not any(isinstance(m, Attention | LatentAttention) for m in after.model.mixers)
    was = count_params(case.model).total
    assert count_params(after.model).total == pytest.approx(was, rel=0.045)
    assert count_params(module.remove(after).model).total == pytest.approx(was, rel=0.07)


@pytest.mark.parametrize("module", [mamba, mamba2])
def test_two_bare_blocks_replace_one_layer(module):
    after = module.apply(MHA)
    assert after.model.n_layers == 64
    ((layer, n),) = after.model.layer_kinds
    assert (n, layer.ffn) == (64, None)
    inner = layer.mixers[0].d_inner
    assert inner == pytest.approx(2 * 4096, rel=0.06)


def test_one_small_layer_becomes_two_blocks():
    after = mamba.apply(serving(tutor(), prompt=16, output=16))
    assert after.model.n_layers == 2
    (mixer,) = after.model.mixers
    assert mixer.dt_rank == 12
    assert cache_elements(mixer, 192).fixed == mixer.d_inner * 16


def test_experts_stay_beside_the_new_mixer():
    after = mamba.apply(CASES["moe-chat"])
    assert after.model.n_layers == 32
    assert after.model.ffns == CASES["moe-chat"].model.ffns
    (mixer,) = after.model.mixers
    assert mixer.d_inner == 8192


def test_mamba_becomes_mamba_2_of_the_same_width():
    after = mamba2.apply(serving(pure_mamba()))
    (mixer,) = after.model.mixers
    assert isinstance(mixer, Mamba2)
    assert (mixer.d_inner, mixer.d_state) == (5120, 128)
    assert after.model.n_layers == 64


def test_a_pure_mamba_without_it_is_a_transformer_of_half_the_layers():
    before = serving(pure_mamba())
    after = mamba.remove(before)
    assert after.model.n_layers == 32
    ((layer, _),) = after.model.layer_kinds
    (attention,) = layer.mixers
    # 2560 channels: 20 heads of 128 in groups of four.
    assert (attention.n_heads, attention.n_kv_heads, attention.head_dim) == (20, 5, 128)
    assert after.model.position.kind == "rope"
    assert count_params(after.model).total == pytest.approx(
        count_params(before.model).total, rel=0.001
    )


def test_a_hybrid_without_mamba_takes_its_own_attention_everywhere():
    before = serving(jamba())
    after = mamba.remove(before)
    assert after.model.mixers == (Attention(n_heads=16, n_kv_heads=4, head_dim=64),)
    assert after.model.n_layers == 16
    assert after.model.position.kind == "nope"


def test_rwkv_mixes_channels_at_equal_size():
    after = rwkv.apply(MHA)
    ((layer, _),) = after.model.layer_kinds
    assert isinstance(layer.ffn, ChannelMix)
    # Per layer 4 d^2 + 5 d for time and d^2 + 2 d + 2 d w for channels hold 202,383,360 less norms:
    # w = (202,375,168 - 5 x 4096^2 - 7 x 4096) / 8192 = 14460.5, to a multiple of 8.
    assert layer.ffn.d_ff == 14464
    assert isinstance(rwkv.remove(after).model.ffns[0], FeedForward)


def test_s4_widens_the_feed_forward():
    after = s4.apply(MHA)
    # S4 holds 2 d^2 + 258 d, attention 4 d^2: (2 x 4096 - 258) / 3 = 2644.7 channels to move.
    assert after.model.ffns[0].d_ff == 13656


def test_hybrid_keeps_one_attention_in_eight():
    after = hybrid.apply(GQA)
    kinds = [type(layer.mixers[0]) for layer in after.model.layers]
    assert [i for i, kind in enumerate(kinds) if kind is Attention] == [4, 12, 20, 28]
    assert kinds.count(Mamba2) == 28
    assert count_params(after.model).total == pytest.approx(
        count_params(GQA.model).total, rel=0.001
    )
    kept = sum(cache_elements(x.mixers[0], 4096).per_token for x in after.model.layers)
    assert kept * 8 == 32 * 2 * 8 * 128


@pytest.mark.parametrize(
    ("kind", "mixer"),
    [("mamba", Mamba), ("mamba2", Mamba2), ("gated-delta", LinearAttention)],
)
def test_hybrid_takes_other_mixers(kind, mixer):
    after = hybrid.apply(MHA, kind=kind, attention_every=4)
    assert sum(isinstance(x.mixers[0], mixer) for x in after.model.layers) == 24
    assert hybrid.is_present(after)
    with pytest.raises(NotApplicable, match="got kind='gru'"):
        hybrid.apply(MHA, kind="gru")


def test_hybrid_needs_two_layers():
    with pytest.raises(NotApplicable, match="got 1 and 8; for all of them take mamba2"):
        hybrid.apply(serving(tutor()))


def test_exits_follow_their_layers():
    exits = EarlyExit(layers=(7, 15), mean_depth=0.7, low=0.5, high=1.0)
    case = replace(MHA, model=replace(MHA.model, early_exit=exits))
    assert mamba.apply(case).model.early_exit.layers == (15, 31)


@pytest.mark.parametrize("module", PURE, ids=lambda m: m.TECHNIQUE.id)
def test_a_model_without_attention_is_refused(module):
    with pytest.raises(NotApplicable, match="this model has none: its layers are rwkv"):
        module.apply(CASES["rwkv-chat"])


def test_a_feed_forward_layer_of_its_own_takes_up_the_difference():
    # Nemotron-H's pattern: bare mixers and bare feed-forwards in turn.
    block = Layer(
        mixers=(Mamba2(n_heads=32, head_dim=64, d_state=128, n_groups=1, d_conv=4),), ffn=None
    )
    wide = Layer(mixers=(), ffn=FeedForward(d_ff=4096, is_gated=False, activation="relu2"))
    heads = Layer(mixers=(Attention(n_heads=16, n_kv_heads=4, head_dim=64),), ffn=None)
    layers = (block, wide, block, wide, heads, wide)
    before = serving(replace(jamba(), layers=layers))
    after = hybrid.remove(before)
    assert [len(x.mixers) for x in after.model.layers] == [1, 0, 1, 0, 1, 0]
    assert after.model.layers[5] == wide
    assert count_params(after.model).total == pytest.approx(
        count_params(before.model).total, rel=0.001
    )
