"""Hypothesis strategies for specs and cases: shapes that exist, and odd ones that are allowed.

`models()` mixes shipped presets with made-up models of every mixer and feed-forward; odd means
prime widths, one head, one layer, parallel mixers, layers without either half.
"""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import strategies as st

from worthit.spec.case import (
    ADOPTIONS,
    AnswerCheck,
    Case,
    Data,
    Device,
    Efficiency,
    Goal,
    Hardware,
    Layout,
    Range,
    Runtime,
    Serving,
    Speculation,
    Stage,
    Training,
    Workload,
)
from worthit.spec.formats import FORMATS
from worthit.spec.load import device_names, load_device, load_preset, preset_names
from worthit.spec.model import (
    ACTIVATIONS,
    RWKV_VERSIONS,
    S4,
    Attention,
    ChannelMix,
    EarlyExit,
    FeedForward,
    Ffn,
    LatentAttention,
    Layer,
    LinearAttention,
    LinearKind,
    Mamba,
    Mamba2,
    Mixer,
    ModelSpec,
    MoE,
    Norm,
    NormKind,
    Placement,
    Position,
    PositionKind,
    PositionScaling,
    Precision,
    QKNorm,
    Routing,
    Rwkv,
    ScalingKind,
)

flags = st.booleans()
texts = st.text(max_size=12)
# Powers of two as in real models, and primes that divide nothing.
sizes = st.sampled_from([1, 2, 3, 7, 8, 13, 16, 31, 32, 64, 127, 128, 256])
widths = st.sampled_from([1, 3, 8, 61, 64, 128, 192, 576, 1024, 4096])
counts = st.integers(1, 1 << 24)
positive = st.floats(min_value=1e-6, max_value=1e6)
shares = st.floats(min_value=0, max_value=1)
formats = st.sampled_from(sorted(FORMATS))
activations = st.sampled_from(ACTIVATIONS)


def one_of_literal(literal: Any) -> st.SearchStrategy[Any]:
    """Any of a `Literal`'s values."""
    return st.sampled_from(get_args(literal))


norms = st.builds(
    Norm,
    kind=one_of_literal(NormKind),
    eps=st.sampled_from([1e-6, 1e-5]),
    has_weight=flags,
    has_bias=flags,
    has_unit_offset=flags,
)
scalings = st.builds(
    PositionScaling,
    kind=one_of_literal(ScalingKind),
    factor=st.floats(min_value=1, max_value=64),
    original_context_len=counts,
    short_factors=st.lists(positive, max_size=3).map(tuple),
)
positions = st.builds(
    Position, kind=one_of_literal(PositionKind), scaling=st.none() | scalings, is_interleaved=flags
)


@st.composite
def attentions(draw: st.DrawFn) -> Attention:
    """Multi-head, grouped or multi-query attention, with any pattern that goes with the rest."""
    n_kv_heads = draw(st.sampled_from([1, 2, 3, 4, 8]))
    # What takes the place of all scores stands neither beside windows nor beside what acts on them.
    sparse_keys = draw(st.none() | sizes)
    n_features = None if sparse_keys is not None else draw(st.none() | sizes)
    is_plain = sparse_keys is None and n_features is None
    return Attention(
        n_heads=n_kv_heads * draw(st.sampled_from([1, 2, 3, 4, 8])),
        n_kv_heads=n_kv_heads,
        head_dim=draw(sizes),
        has_qkv_bias=draw(flags),
        has_out_bias=draw(flags),
        qk_norm=draw(one_of_literal(QKNorm)),
        rotary_dim=draw(st.none() | sizes),
        is_position_free=draw(flags) if is_plain else True,
        window=draw(st.none() | sizes) if is_plain else None,
        chunk=draw(st.none() | sizes) if is_plain else None,
        sparse_keys=sparse_keys,
        sparse_near=None if sparse_keys is None else draw(st.none() | sizes),
        n_features=n_features,
        has_sinks=draw(flags) if is_plain else False,
        has_output_gate=draw(flags),
        logit_softcap=draw(st.none() | st.just(50.0)) if is_plain else None,
        position=draw(st.none() | positions),
    )


@st.composite
def linear_attentions(draw: st.DrawFn) -> LinearAttention:
    """Linear attention by any rule; value heads are a multiple of key heads."""
    n_key_heads = draw(st.sampled_from([1, 2, 3, 16]))
    return LinearAttention(
        kind=draw(one_of_literal(LinearKind)),
        n_key_heads=n_key_heads,
        n_value_heads=n_key_heads * draw(st.sampled_from([1, 2, 3])),
        key_dim=draw(sizes),
        value_dim=draw(sizes),
        d_conv=draw(st.sampled_from([0, 4])),
        has_output_gate=draw(flags),
        has_output_norm=draw(flags),
    )


@st.composite
def rwkvs(draw: st.DrawFn) -> Rwkv:
    """Any version; heads of their size make up the width."""
    head_dim = draw(sizes)
    return Rwkv(
        d_attention=head_dim * draw(st.sampled_from([1, 2, 3])),
        version=draw(st.sampled_from(RWKV_VERSIONS)),
        head_dim=head_dim,
        mix_rank=draw(sizes),
        rank=draw(sizes),
        has_value_mix=draw(flags),
    )


@st.composite
def mamba2s(draw: st.DrawFn) -> Mamba2:
    """Mamba-2; groups divide heads."""
    n_groups = draw(st.sampled_from([1, 2, 8]))
    return Mamba2(
        n_heads=n_groups * draw(st.sampled_from([1, 3, 8])),
        head_dim=draw(sizes),
        d_state=draw(sizes),
        n_groups=n_groups,
        d_conv=draw(st.sampled_from([1, 4])),
        has_bias=draw(flags),
        dt_max=draw(st.none() | st.just(0.1)),
        part_scales=draw(st.tuples(*[positive] * 5)),
    )


def mixers() -> st.SearchStrategy[Mixer]:
    """Any one mixer."""
    latent = st.builds(
        LatentAttention,
        n_heads=sizes,
        kv_lora_rank=sizes,
        qk_nope_head_dim=sizes,
        qk_rope_head_dim=sizes,
        v_head_dim=sizes,
        q_lora_rank=st.none() | sizes,
        has_bias=flags,
    )
    mamba = st.builds(
        Mamba, d_inner=sizes, d_state=sizes, d_conv=sizes, dt_rank=sizes, has_inner_norms=flags
    )
    return st.one_of(
        attentions(),
        latent,
        linear_attentions(),
        mamba,
        mamba2s(),
        rwkvs(),
        st.builds(S4, d_state=sizes.map(lambda n: 2 * n)),
    )


feed_forwards = st.builds(
    FeedForward, d_ff=widths, is_gated=flags, activation=activations, has_bias=flags
)


@st.composite
def moes(draw: st.DrawFn) -> MoE:
    """A mixture of experts, with or without groups and shared experts."""
    n_groups = draw(st.sampled_from([1, 2, 8]))
    n_experts = n_groups * draw(st.sampled_from([1, 2, 3, 8]))
    n_shared = draw(st.sampled_from([0, 0, 1, 2]))
    return MoE(
        n_experts=n_experts,
        n_experts_per_token=draw(st.integers(1, n_experts)),
        expert=draw(feed_forwards),
        shared=draw(feed_forwards) if n_shared else None,
        n_shared_experts=n_shared,
        routing=draw(one_of_literal(Routing)),
        n_groups=n_groups,
        capacity_factor=draw(st.none() | st.just(1.25)),
    )


def ffns() -> st.SearchStrategy[Ffn]:
    """Any one feed-forward."""
    return st.one_of(
        feed_forwards, st.builds(ChannelMix, d_ff=widths, has_receptance=flags), moes()
    )


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """A layer of up to two parallel mixers, sometimes without one of its halves."""
    ffn = draw(st.none() | ffns())
    n_mixers = draw(st.sampled_from([1, 1, 1, 2] if ffn is None else [0, 1, 1, 1, 2]))
    return Layer(
        mixers=tuple(draw(mixers()) for _ in range(n_mixers)),
        ffn=ffn,
        norm=draw(norms),
        placement=draw(one_of_literal(Placement)),
        is_parallel=draw(flags),
        has_one_norm=draw(flags),
        token_fraction=draw(st.sampled_from([1.0, 1.0, 0.125])),
        n_loops=draw(st.sampled_from([1, 1, 3])),
    )


precisions = st.builds(
    Precision,
    weights=formats,
    embeddings=formats,
    activations=st.sampled_from(["bf16", "fp16", "fp32", "fp8"]),
    cache=formats,
    state=st.sampled_from(["bf16", "fp32"]),
)


@st.composite
def odd_models(draw: st.DrawFn) -> ModelSpec:
    """A made-up model whose layers repeat in runs, in patterns or not at all."""
    kinds = draw(st.lists(layers(), min_size=1, max_size=3))
    pattern = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=5))
    prefix = draw(st.lists(st.sampled_from(kinds), max_size=2))
    stack = (*prefix, *pattern * draw(st.integers(1, 5)))
    exits = st.builds(
        EarlyExit, layers=st.just((0,)), mean_depth=shares, low=st.just(0.0), high=st.just(1.0)
    )
    return ModelSpec(
        name=draw(texts),
        d_model=draw(widths),
        vocab_size=draw(counts),
        layers=stack,
        context_len=draw(counts),
        position=draw(positions),
        norm=draw(norms),
        has_final_norm=draw(flags),
        has_tied_embeddings=draw(flags),
        embedding_dim=draw(st.none() | widths),
        n_positions=draw(st.sampled_from([0, 0, 2048])),
        logit_softcap=draw(st.none() | st.just(30.0)),
        early_exit=draw(st.none() | exits),
        precision=draw(precisions),
        source=draw(texts),
    )


def models() -> st.SearchStrategy[ModelSpec]:
    """Shipped and made-up models alike."""
    return st.one_of(st.sampled_from(preset_names()).map(load_preset), odd_models())


rates = st.floats(min_value=1e6, max_value=1e16)
times = st.floats(min_value=0, max_value=1e-3)
efficiencies = st.builds(
    Efficiency,
    gemm_compute=st.floats(min_value=0.1, max_value=1),
    gemm_memory=st.floats(min_value=0.1, max_value=1),
    decode_attention_memory=st.floats(min_value=0.1, max_value=1),
    prefill_attention_compute=st.floats(min_value=0.1, max_value=1),
    launch_s=times,
    decode_attention_launch_s=times,
    comm_floor_s=times,
    source=texts,
    is_calibrated=flags,
)


def devices() -> st.SearchStrategy[Device]:
    """Shipped devices, and made-up ones that lack this or that."""
    made_up = st.builds(
        Device,
        id=st.just("made-up"),
        name=texts,
        kind=st.sampled_from(["gpu", "cpu", "tpu"]),
        flops_per_s=st.fixed_dictionaries(
            {"fp32": rates}, optional={"bf16": st.none() | rates, "fp8": st.none() | rates}
        ),
        mem_bytes_per_s=rates,
        mem_bytes=rates,
        efficiency=efficiencies,
        llc_bytes=st.none() | rates,
        link_bytes_per_s=st.none() | rates,
        link_domain=st.sampled_from([1, 8, 72]),
        price_usd_per_hour=st.none() | positive,
        aliases=st.lists(texts, max_size=2).map(tuple),
    )
    return st.one_of(st.sampled_from(device_names()).map(load_device), made_up)


@st.composite
def trainings(draw: st.DrawFn) -> Training:
    """A training run whose batch holds a whole number of sequences."""
    seq = draw(st.integers(1, 1 << 17))
    return Training(
        tokens=draw(st.integers(1, 10**14)),
        seq=seq,
        batch_tokens=seq * draw(st.sampled_from([1, 2, 3, 1024])),
        name=draw(texts),
    )


servings = st.builds(
    Serving,
    prompt=st.integers(1, 1 << 20),
    output=st.integers(1, 1 << 16),
    concurrency=st.integers(1, 4096),
    output_spread=st.floats(min_value=0, max_value=3),
    shared_prefix=shares,
    copy_rate=shares,
    name=texts,
)


def workloads() -> st.SearchStrategy[Workload]:
    """Requests to serve, or tokens to train on."""
    return st.one_of(servings, trainings())


@st.composite
def ranges(draw: st.DrawFn, low: float = 0.0, high: float = 0.9) -> Range:
    """An ordered range within bounds."""
    ends = sorted(draw(st.floats(min_value=low, max_value=high)) for _ in range(3))
    return Range(low=ends[0], mid=ends[1], high=ends[2])


runtimes = st.builds(
    Runtime,
    attention=st.sampled_from(["naive", "fused"]),
    is_compiled=st.none() | flags,
    has_paging=flags,
    has_continuous_batching=flags,
    prefill_chunk=st.none() | sizes,
    kept_tokens=st.none() | sizes,
    speculation=st.none()
    | st.builds(Speculation, draft_len=st.integers(1, 16), acceptance=ranges()),
    recompute=st.sampled_from(["none", "selective", "full"]),
    optimizer_bytes_per_param=st.sampled_from([0.0, 8.0, 12.0]),
    tokens_to_target=st.none() | ranges(0.1, 4.0),
)


@st.composite
def hardwares(draw: st.DrawFn) -> Hardware:
    """Up to 1024 devices; stated degrees multiply into their number."""
    degrees = [draw(st.sampled_from([1, 1, 2, 8])) for _ in range(3)]
    tensor, pipeline, context = degrees
    n = tensor * pipeline * context * draw(st.sampled_from([1, 2]))
    layout = Layout(
        tensor=draw(st.sampled_from([None, tensor])),
        pipeline=pipeline,
        context=context,
        expert=draw(st.sampled_from([1, n])),
        zero=draw(st.sampled_from([0, 1, 2, 3])),
        has_sequence_parallel=draw(flags),
    )
    return Hardware(device=draw(devices()), n_devices=n, layout=layout)


def cases() -> st.SearchStrategy[Case]:
    """Any case; its parts need not make sense together."""
    return st.builds(
        Case,
        model=models(),
        workload=workloads(),
        hardware=hardwares(),
        runtime=runtimes,
        data=st.builds(
            Data,
            unique_tokens=st.none() | counts,
            repeat_epochs=st.none() | positive,
            checkpoints=st.none() | counts,
            answer_check=st.none() | one_of_literal(AnswerCheck),
        ),
        stage=one_of_literal(Stage),
        goal=st.none() | one_of_literal(Goal),
        max_adoption=st.none() | st.sampled_from(ADOPTIONS),
        warnings=st.lists(texts, max_size=2).map(tuple),
        name=texts,
    )
