"""The decoder around its mixers: placements, caches, padding, causality, and every parameter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn.tolerances import assert_near
from strategies import odd_models
from torch import Tensor, nn

from worthit.cost.params import count_params
from worthit.errors import InputError
from worthit.nn.decoder import Decoder, build
from worthit.nn.tokens import tokens_of
from worthit.spec.model import (
    Attention,
    FeedForward,
    LatentAttention,
    Layer,
    LinearAttention,
    Mamba,
    Mamba2,
    ModelSpec,
    MoE,
    Norm,
    Placement,
    Position,
    QueryTemperature,
)

ATTENTION = Attention(n_heads=4, n_kv_heads=2, head_dim=6, rotary_dim=6)
FFN = FeedForward(d_ff=24)
VOCAB, D_MODEL = 11, 16


def model_of(*layers: Layer, **around: object) -> ModelSpec:
    return ModelSpec(
        name="m", d_model=D_MODEL, vocab_size=VOCAB, layers=layers, context_len=64, **around
    )


def fresh(spec: ModelSpec, seed: int = 0) -> Decoder:
    """Every parameter drawn: defaults of 0 and 1 hide mistakes."""
    torch.manual_seed(seed)
    model = build(spec).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def ids_of(batch: int, n: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (batch, n), generator=torch.Generator().manual_seed(seed))


# Against a loop written by hand


def rms(x: Tensor, norm: nn.Module) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def attend_slowly(x: Tensor, attention: nn.Module) -> Tensor:
    """Causal attention of `(n, d_model)`, query by query, turned as complex numbers."""
    n = len(x)
    turn = torch.exp(1j * torch.arange(n)[:, None] * 10_000.0 ** (-torch.arange(0, 6, 2) / 6))

    def heads(projection: nn.Linear, *, is_turned: bool) -> Tensor:
        h = (x @ projection.weight.T).view(n, -1, 6)
        if not is_turned:
            return h
        # Channel i turns with channel i + 3.
        pairs = torch.complex(h[..., :3], h[..., 3:]) * turn[:, None]
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    q, k = heads(attention.q_proj, is_turned=True), heads(attention.k_proj, is_turned=True)
    v = heads(attention.v_proj, is_turned=False)
    out = torch.zeros(n, 4, 6)
    for i in range(n):
        for h in range(4):
            weights = (k[: i + 1, h // 2] @ q[i, h] / 6**0.5).softmax(0)
            out[i, h] = weights @ v[: i + 1, h // 2]
    return out.flatten(1) @ attention.o_proj.weight.T


def feed_slowly(x: Tensor, ffn: nn.Module) -> Tensor:
    gate, value = (x @ ffn.up.weight.T).chunk(2, -1)
    return (gate * torch.sigmoid(gate) * value) @ ffn.down.weight.T


def pre(x: Tensor, b: nn.Module, s: float) -> Tensor:
    x = x + s * attend_slowly(rms(x, b.mixer_norm), b.mixers[0])
    return x + s * feed_slowly(rms(x, b.ffn_norm), b.ffn)


def post(x: Tensor, b: nn.Module, s: float) -> Tensor:
    x = rms(x + s * attend_slowly(x, b.mixers[0]), b.mixer_post_norm)
    return rms(x + s * feed_slowly(x, b.ffn), b.ffn_post_norm)


def output(x: Tensor, b: nn.Module, s: float) -> Tensor:
    x = x + s * rms(attend_slowly(x, b.mixers[0]), b.mixer_post_norm)
    return x + s * rms(feed_slowly(x, b.ffn), b.ffn_post_norm)


def sandwich(x: Tensor, b: nn.Module, s: float) -> Tensor:
    mixed = attend_slowly(rms(x, b.mixer_norm), b.mixers[0])
    x = x + s * rms(mixed, b.mixer_post_norm)
    return x + s * rms(feed_slowly(rms(x, b.ffn_norm), b.ffn), b.ffn_post_norm)


def parallel(x: Tensor, b: nn.Module, s: float) -> Tensor:
    mixed = attend_slowly(rms(x, b.mixer_norm), b.mixers[0])
    return x + s * (mixed + feed_slowly(rms(x, b.ffn_norm), b.ffn))


def parallel_on_one_norm(x: Tensor, b: nn.Module, s: float) -> Tensor:
    assert b.ffn_norm is None
    h = rms(x, b.mixer_norm)
    return x + s * (attend_slowly(h, b.mixers[0]) + feed_slowly(h, b.ffn))


PLACEMENTS = {
    pre: Layer(mixers=(ATTENTION,), ffn=FFN),
    post: Layer(mixers=(ATTENTION,), ffn=FFN, placement="post"),
    output: Layer(mixers=(ATTENTION,), ffn=FFN, placement="output"),
    sandwich: Layer(mixers=(ATTENTION,), ffn=FFN, placement="sandwich"),
    parallel: Layer(mixers=(ATTENTION,), ffn=FFN, is_parallel=True),
    parallel_on_one_norm: Layer(mixers=(ATTENTION,), ffn=FFN, is_parallel=True, has_one_norm=True),
}


@pytest.mark.parametrize("residual_scale", [1.0, 0.22])
@pytest.mark.parametrize("slowly", PLACEMENTS, ids=lambda f: f.__name__)
def test_placements_are_their_formulas(slowly, residual_scale: float) -> None:
    layer = replace(PLACEMENTS[slowly], residual_scale=residual_scale)
    model = fresh(model_of(layer, layer, embedding_scale=2.0, logit_scale=0.5, logit_softcap=3.0))
    ids = ids_of(1, 9)
    got = model(ids)[0]
    x = model.embedding.weight[ids[0]] * 2.0
    for block in model.layers:
        x = slowly(x, block, residual_scale)
    logits = rms(x, model.final_norm) @ model.head.weight.T * 0.5
    assert_near(got, 3.0 * torch.tanh(logits / 3.0))


def test_parallel_mixers_are_summed() -> None:
    layer = Layer(mixers=(ATTENTION, replace(ATTENTION, window=2)), ffn=None)
    model = fresh(model_of(layer))
    x = torch.randn(1, 7, D_MODEL)
    tokens = tokens_of(x[..., 0], past=0, attention_mask=None)
    block = model.layers[0]
    h = block.mixer_norm(x)
    assert_near(block(x, tokens), x + block.mixers[0](h, tokens) + block.mixers[1](h, tokens))


def test_around_the_layers_narrow_embedding_tied_head_and_its_norm() -> None:
    spec = model_of(
        Layer(mixers=(), ffn=FFN),
        embedding_dim=6,
        has_tied_embeddings=True,
        has_embedding_norm=True,
        has_final_norm=False,
        n_positions=64,
        position=Position(kind="learned"),
    )
    model = fresh(spec)
    ids = ids_of(1, 5)
    x = model.embedding.weight[ids[0]] @ model.embedding_in.weight.T + model.positions.weight[:5]
    x = rms(x, model.embedding_norm)
    x = x + feed_slowly(rms(x, model.layers[0].ffn_norm), model.layers[0].ffn)
    assert_near(model(ids)[0], x @ model.embedding_out.weight.T @ model.embedding.weight.T)


# Random models that can run

attentions = st.builds(
    lambda kv, groups, **more: Attention(n_kv_heads=kv, n_heads=kv * groups, **more),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 3]),
    head_dim=st.just(6),
    rotary_dim=st.sampled_from([None, 4, 6]),
    has_qkv_bias=st.booleans(),
    has_out_bias=st.booleans(),
    qk_norm=st.sampled_from(["none", "head", "full", "per-head", "no-weight"]),
    is_qk_norm_after_rope=st.booleans(),
    is_position_free=st.booleans(),
    window=st.sampled_from([None, None, 1, 4, 100]),
    chunk=st.sampled_from([None, None, 5]),
    has_sinks=st.booleans(),
    has_output_gate=st.booleans(),
    logit_softcap=st.sampled_from([None, None, 2.0]),
    temperature=st.sampled_from([None, QueryTemperature(scale=0.1, floor=3.0)]),
    qkv_clip=st.sampled_from([None, None, 1.0]),
)
recurrent = st.one_of(
    st.builds(
        LinearAttention,
        kind=st.sampled_from(["linear", "retention", "gated"]),
        n_key_heads=st.just(2),
        n_value_heads=st.just(4),
        key_dim=st.just(6),
        value_dim=st.just(5),
        d_conv=st.sampled_from([0, 4]),
        chunk=st.sampled_from([4, 64]),
    ),
    st.just(Mamba(d_inner=32, d_state=4, d_conv=4, dt_rank=2)),
    st.just(Mamba2(n_heads=4, head_dim=8, d_state=4, n_groups=2, d_conv=4)),
)
latent = st.just(
    LatentAttention(n_heads=2, kv_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=6)
)
ffns = st.one_of(
    st.none(),
    st.builds(FeedForward, d_ff=st.just(12), is_gated=st.booleans(), has_bias=st.booleans()),
    st.just(MoE(n_experts=4, n_experts_per_token=2, expert=FeedForward(d_ff=6))),
)


@st.composite
def small_layers(draw: st.DrawFn) -> Layer:
    ffn = draw(ffns)
    return Layer(
        mixers=tuple(draw(st.lists(attentions | latent | recurrent, min_size=1, max_size=2))),
        ffn=ffn,
        norm=Norm(kind=draw(st.sampled_from(["rmsnorm", "layernorm"]))),
        placement=draw(st.sampled_from(["pre", "post", "output", "sandwich"])),
        is_parallel=draw(st.booleans()),
        has_one_norm=draw(st.booleans()),
    )


@st.composite
def small_models(draw: st.DrawFn) -> ModelSpec:
    kind = draw(st.sampled_from(["rope", "rope", "learned", "sinusoidal", "alibi", "nope"]))
    layers = draw(st.lists(small_layers(), min_size=1, max_size=3))
    has_latent = any(isinstance(m, LatentAttention) for x in layers for m in x.mixers)
    if not has_latent and draw(st.integers(0, 4)) == 0:
        kind = "relative-bias"
    return model_of(
        *layers,
        position=Position(kind=kind, is_interleaved=draw(st.booleans())),
        n_positions=64 if kind == "learned" else 0,
        has_tied_embeddings=draw(st.booleans()),
    )


@settings(max_examples=15)
@given(small_models(), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 4))
def test_chunks_and_single_tokens_continue_what_was_seen(
    spec: ModelSpec, chunks: list[int], n_single: int
) -> None:
    model = fresh(spec)
    lengths = chunks + [1] * n_single
    ids = ids_of(2, sum(lengths))
    with torch.no_grad():
        want = model(ids)
        cache, parts = model.new_cache(), []
        for part in ids.split(lengths, dim=1):
            parts.append(model(part, cache=cache))
    assert cache.length == sum(lengths)
    assert_near(torch.cat(parts, dim=1), want)


@settings(max_examples=15)
@given(small_models(), st.integers(1, 6))
def test_left_padding_changes_nothing(spec: ModelSpec, padding: int) -> None:
    model = fresh(spec)
    ids = ids_of(2, 12)
    # The second row is padded; the first is as long as the batch.
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :padding] = 0
    with torch.no_grad():
        whole, alone = model(ids), model(ids[1:, padding:])
        got = model(ids, attention_mask=mask)
        assert_near(got[0], whole[0])
        assert_near(got[1, padding:], alone[0])
        cache = model.new_cache()
        parts = [model(ids[:, :9], cache=cache, attention_mask=mask[:, :9])]
        # Either mask does: the new token's alone, or everything's.
        parts.append(model(ids[:, 9:10], cache=cache, attention_mask=mask[:, 9:10]))
        parts.append(model(ids[:, 10:11], cache=cache, attention_mask=mask[:, :11]))
        parts.append(model(ids[:, 11:], cache=cache))
        assert_near(torch.cat(parts, dim=1)[1, padding:], alone[0])


@settings(max_examples=15)
@given(small_models(), st.integers(0, 10))
def test_a_later_token_changes_no_earlier_logit(spec: ModelSpec, place: int) -> None:
    model = fresh(spec)
    ids = ids_of(1, 11)
    changed = ids.clone()
    changed[0, place] = (ids[0, place] + 1) % VOCAB
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert_near(after[:, :place], before[:, :place])
    assert not torch.equal(after[:, place], before[:, place])


@given(odd_models())
def test_parameters_are_those_that_cost_counts(spec: ModelSpec) -> None:
    """Over everything that specs can say, on the meta device."""
    with torch.device("meta"):
        model = build(countable(spec))
    assert sum(p.numel() for p in model.parameters()) == count_params(countable(spec)).total


def countable(spec: ModelSpec) -> ModelSpec:
    """`spec` without the table of relative biases, which the technique that adds it counts."""
    is_biased = spec.position.kind == "relative-bias"
    return replace(spec, position=Position()) if is_biased else spec


# What callers rely on


def test_last_only_is_the_last_and_loads_under_equal_layers() -> None:
    layer = Layer(mixers=(ATTENTION,), ffn=FFN)
    model = fresh(model_of(layer, layer))
    ids = ids_of(2, 9)
    assert_near(model(ids, last_only=True), model(ids)[:, -1:])
    # Equal layers share a spec and nothing else.
    a, b = (block.mixers[0].q_proj.weight for block in model.layers)
    assert a is not b


@pytest.mark.parametrize("placement", ["pre", "post", "output", "sandwich"])
def test_absent_norms_do_not_exist(placement: Placement) -> None:
    block = build(model_of(Layer(mixers=(ATTENTION,), ffn=FFN, placement=placement))).layers[0]
    assert (block.mixer_norm is not None) == (placement in ("pre", "sandwich"))
    assert (block.mixer_post_norm is not None) == (placement != "pre")


def test_too_long_for_learned_positions_says_so() -> None:
    layer = Layer(mixers=(ATTENTION,), ffn=None)
    model = fresh(model_of(layer, position=Position(kind="learned"), n_positions=8))
    cache = model.new_cache()
    model(ids_of(1, 8), cache=cache)
    with pytest.raises(InputError, match="for 8 tokens, got position 8"):
        model(ids_of(1, 1), cache=cache)


# Logits of some tokens


MOE = MoE(n_experts=4, n_experts_per_token=2, expert=FeedForward(d_ff=8))
MAMBA = Mamba(d_inner=32, d_state=4, d_conv=4, dt_rank=2)


@pytest.mark.parametrize(
    "layers",
    [
        (Layer(mixers=(ATTENTION,), ffn=FFN),) * 2,
        (Layer(mixers=(ATTENTION,), ffn=FFN, placement="post"),),
        (Layer(mixers=(ATTENTION,), ffn=FFN, placement="sandwich"),),
        (Layer(mixers=(ATTENTION,), ffn=FFN, is_parallel=True),),
        (Layer(mixers=(ATTENTION,), ffn=MOE),),
        (Layer(mixers=(ATTENTION,), ffn=FFN, n_loops=2),),
        (Layer(mixers=(MAMBA,), ffn=None),),
        (Layer(mixers=(), ffn=FFN),),
    ],
)
def test_logits_of_some_tokens_are_those_of_all(layers: tuple[Layer, ...]) -> None:
    model, ids = fresh(model_of(*layers)), ids_of(3, 7)
    rows = torch.tensor([20, 0, 6, 7])
    assert_near(model.logits_at(ids, rows), model(ids).flatten(0, 1)[rows])


def test_logits_of_some_tokens_run_the_last_feed_forward_for_them_alone() -> None:
    model, seen = fresh(model_of(*(Layer(mixers=(ATTENTION,), ffn=FFN),) * 2)), []
    for block in model.layers:
        block.ffn.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:-1]))
    model.logits_at(ids_of(3, 7), torch.tensor([2, 5]))
    assert [tuple(shape) for shape in seen] == [(3, 7), (2,)]
