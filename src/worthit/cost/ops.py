"""What each mixer and each feed-forward computes and moves in one pass.

One function a structure. `d` is the width of the residual stream (scaled by `p.width`); head
counts and inner widths scale with it, head sizes, states, ranks per head and expert counts do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch

import numpy as np

from worthit.cost.ledger import (
    Number,
    Op,
    Pass,
    activation_bytes,
    elementwise,
    matmul,
    operand_bytes,
)
from worthit.spec.formats import format_of
from worthit.spec.model import (
    S4,
    Attention,
    ChannelMix,
    FeedForward,
    LatentAttention,
    LinearAttention,
    Mamba,
    Mamba2,
    MoE,
    Rwkv,
)

# A score matrix that is not fused away is written and read by the product, softmax and dropout-free
# probabilities: write scores, read them, write probabilities, read them.
SCORE_TRIPS = 4
# Mamba-1's scan per token, channel and state: discretise A and B, update, read out (Gu & Dao 2023,
# section 3.3; the count of FLOPs is the reference kernel's documentation).
SCAN_FLOPS = 9
# Gather and scatter around the experts, and two grouped products: kernels beside the router's.
MOE_LAUNCHES = 4


# Product, scale and mask, softmax, product.
UNFUSED_LAUNCHES = 4.0
# A recurrence written as plain tensor operations: decay, outer product, update, read-out, sum.
UNCOMPILED_RECURRENCE = 5.0


@singledispatch
def mixer_ops(mixer: object, d: Number, p: Pass) -> Iterator[Op]:
    """Operations of one mixer."""
    raise TypeError(f"no operations for {type(mixer).__name__}")


@mixer_ops.register(Attention)
def _(mixer: Attention, d: Number, p: Pass) -> Iterator[Op]:
    heads, kv_heads = mixer.n_heads * p.width, mixer.n_kv_heads * p.width
    q, kv = heads * mixer.head_dim, kv_heads * mixer.head_dim
    n_q = 2 if mixer.has_output_gate else 1
    qkv = matmul("qkv projection", p, d, n_q * q + 2 * kv)
    # Fewer key/value heads than devices are replicated, not split further.
    shared = p.sharded(kv_heads) * p.tensor / kv_heads
    qkv.weights = qkv.weights * (n_q * q + 2 * kv * shared) / (n_q * q + 2 * kv)
    yield qkv
    if mixer.rotary_dim or mixer.qk_norm != "none":
        yield elementwise("rotary and qk-norm", p, (q + kv) / p.tensor)
    if mixer.low_rank is not None:
        yield Op(
            name="low-rank keys and values",
            kernel="gemm",
            flops=4.0 * p.tokens * mixer.low_rank * kv / p.tensor,
            other=2 * p.tokens * kv / p.tensor * activation_bytes(p),
        )
        visible: Number = float(mixer.low_rank)
    elif mixer.chunk is not None:
        whole = p.visible()
        visible = np.where(p.past + p.new <= mixer.chunk, whole, mixer.chunk / 2)
    else:
        visible = p.visible(mixer.window)
    if mixer.sparse_keys is not None:
        visible = np.minimum(visible, mixer.sparse_keys)
    yield attend(
        p,
        heads=heads / p.tensor,
        d_qk=mixer.head_dim,
        d_v=mixer.head_dim,
        visible=visible,
        cached=2 * p.sharded(kv_heads) * mixer.head_dim,
        unmasked=None if mixer.low_rank is None else visible,
    )
    yield matmul("attention output", p, q, d)


def attend(
    p: Pass,
    *,
    heads: Number,
    d_qk: Number,
    d_v: Number,
    visible: Number,
    cached: Number,
    unmasked: Number | None = None,
) -> Op:
    """Scores, softmax and weighted sum for `heads` query heads.

    FLOPs are 2 H (d_qk + d_v) per visible key and token. `cached` elements per past token are read
    once a sequence, and written once per new token. Unfused, `unmasked` keys are multiplied (the
    mask comes after; all of them where None) and the score matrix travels `SCORE_TRIPS` times.
    """
    if p.kept_tokens is not None and p.phase == "decode":
        visible = np.minimum(visible, p.kept_tokens)
    cache_size = format_of(p.precision.cache).bytes
    # Past keys are read once for all new tokens of a sequence; beyond a window they are not kept.
    past_read = np.minimum(p.past, visible)
    keys = visible
    scores: Number = 0.0
    if not p.is_fused:
        if p.phase != "decode":
            keys = p.past + p.new if unmasked is None else unmasked
        activation = activation_bytes(p)
        scores = SCORE_TRIPS * p.tokens * heads * keys * activation
    return Op(
        name="attention",
        kernel="attention",
        flops=2.0 * p.tokens * heads * (d_qk + d_v) * keys / p.context,
        cache=p.batch * cached * (past_read + p.new) * cache_size / p.context,
        scores=scores / p.context,
        other=p.tokens * heads * (d_qk + d_v) * activation_bytes(p),
        math=format_of(p.precision.activations).math
        if p.precision.activations in ("fp32", "fp16")
        else "bf16",
        launches=1.0 if p.is_fused else UNFUSED_LAUNCHES,
        is_fused=p.is_fused,
    )


@mixer_ops.register(LatentAttention)
def _(mixer: LatentAttention, d: Number, p: Pass) -> Iterator[Op]:
    heads = mixer.n_heads * p.width
    d_qk = mixer.qk_nope_head_dim + mixer.qk_rope_head_dim
    latent, rope = mixer.kv_lora_rank * p.width, mixer.qk_rope_head_dim
    if mixer.q_lora_rank is None:
        yield matmul("query projection", p, d, heads * d_qk)
    else:
        rank = mixer.q_lora_rank * p.width
        yield _replicated(matmul("query down", p, d, rank), p)
        yield matmul("query up", p, rank, heads * d_qk)
    yield _replicated(matmul("latent down", p, d, latent + rope), p)
    yield elementwise("rotary and latent norms", p, latent + heads * rope / p.tensor)
    # Keys and values are rebuilt from the latent where many tokens are computed at once; in decode
    # the up-projections are absorbed into queries and outputs (DeepSeek-V2, section 2.1.2).
    up = matmul("latent up", p, latent, heads * (mixer.qk_nope_head_dim + mixer.v_head_dim))
    yield up
    cached = latent + rope
    if p.phase == "decode":
        yield attend(
            p,
            heads=heads / p.tensor,
            d_qk=latent + rope,
            d_v=latent,
            visible=p.visible(),
            cached=cached,
        )
    else:
        yield attend(
            p,
            heads=heads / p.tensor,
            d_qk=d_qk,
            d_v=mixer.v_head_dim,
            visible=p.visible(),
            cached=cached,
        )
    yield matmul("attention output", p, heads * mixer.v_head_dim, d)


def _replicated(op: Op, p: Pass) -> Op:
    """`op` done in full on every tensor-parallel device: small latents are not split."""
    op.flops, op.weights, op.other = (
        op.flops * p.tensor,
        op.weights * p.tensor,
        op.other * p.tensor,
    )
    return op


@mixer_ops.register(LinearAttention)
def _(mixer: LinearAttention, d: Number, p: Pass) -> Iterator[Op]:
    heads = mixer.n_value_heads * p.width
    keys = mixer.n_key_heads * p.width * mixer.key_dim
    values = heads * mixer.value_dim
    gate = values if mixer.has_output_gate else 0
    # What the rule is told of each token: decays and write strengths (see `params`).
    told = {
        "linear": 0,
        "retention": 0,
        "gated": keys,
        "delta": heads,
        "gated-delta": 2 * heads,
    }[mixer.kind]
    yield matmul("qkv and gate projection", p, d, 2 * keys + values + gate + told)
    if mixer.d_conv:
        yield elementwise("short convolution", p, (2 * keys + values) / p.tensor)
    # The delta rules also read the state before they write it (Yang et al. 2024, equation 1).
    n_products = 3 if "delta" in mixer.kind else 2
    state = heads / p.tensor * mixer.key_dim * mixer.value_dim
    chunk = np.minimum(mixer.chunk, p.new)
    yield _recurrence(
        "linear attention",
        p,
        state=state,
        step_flops=2.0 * n_products * state,
        chunk_flops=heads
        / p.tensor
        * (n_products - 1)
        * 2.0
        * chunk
        * (mixer.key_dim + mixer.value_dim)
        + 2.0 * n_products * state,
        streams=2 * keys + 2 * values,
    )
    yield matmul("linear attention output", p, values, d)


def _recurrence(
    name: str,
    p: Pass,
    *,
    state: Number,
    step_flops: Number,
    chunk_flops: Number,
    streams: Number,
    math: str = "bf16",
) -> Op:
    """A state updated per token: read and written every token in decode, kept on chip otherwise."""
    is_decode = p.phase == "decode"
    state_bytes = READ_WRITE_STATE * state * format_of(p.precision.state).bytes
    return Op(
        name=name,
        kernel="scan",
        flops=p.tokens * (step_flops if is_decode else chunk_flops),
        cache=p.batch * state_bytes * (p.new if is_decode else 1.0),
        other=p.tokens * streams / p.tensor * activation_bytes(p),
        launches=1.0 if p.is_compiled else UNCOMPILED_RECURRENCE,
        math="vector" if is_decode else math,
    )


READ_WRITE_STATE = 2


@mixer_ops.register(Mamba)
def _(mixer: Mamba, d: Number, p: Pass) -> Iterator[Op]:
    inner, rank = mixer.d_inner * p.width, mixer.dt_rank * p.width
    yield matmul("in projection", p, d, 2 * inner)
    yield elementwise("short convolution", p, inner / p.tensor)
    yield matmul("selection projection", p, inner, rank + 2 * mixer.d_state)
    yield matmul("time-step projection", p, rank, inner)
    scan = SCAN_FLOPS * inner / p.tensor * mixer.d_state
    yield _recurrence(
        "selective scan",
        p,
        state=inner / p.tensor * mixer.d_state,
        step_flops=scan,
        chunk_flops=scan,
        streams=4 * inner,
        math="vector",
    )
    yield matmul("out projection", p, inner, d)


@mixer_ops.register(Mamba2)
def _(mixer: Mamba2, d: Number, p: Pass) -> Iterator[Op]:
    inner, heads = mixer.d_inner * p.width, mixer.n_heads * p.width / p.tensor
    groups = mixer.n_groups * mixer.d_state
    yield matmul("in projection", p, d, 2 * inner + 2 * groups + mixer.n_heads * p.width)
    yield elementwise("short convolution", p, (inner + 2 * groups) / p.tensor)
    chunk = np.minimum(mixer.chunk, p.new)
    state = heads * mixer.head_dim * mixer.d_state
    # Within a chunk: C B^T once a group and its product with X a head; between chunks: write and
    # read the state (Dao & Gu 2024, section 6).
    yield _recurrence(
        "state-space duality",
        p,
        state=state,
        step_flops=6.0 * state,
        chunk_flops=2.0 * chunk * groups + 2.0 * chunk * heads * mixer.head_dim + 4.0 * state,
        streams=3 * inner + 2 * groups,
    )
    yield elementwise("gated norm", p, inner / p.tensor)
    yield matmul("out projection", p, inner, d)


@mixer_ops.register(Rwkv)
def _(mixer: Rwkv, d: Number, p: Pass) -> Iterator[Op]:
    width = mixer.d_attention * p.width
    yield elementwise("token shift", p, 3 * d)
    yield matmul("key, value, receptance", p, d, 3 * width)
    yield _recurrence(
        "wkv",
        p,
        state=3 * width / p.tensor,
        step_flops=8.0 * width / p.tensor,
        chunk_flops=8.0 * width / p.tensor,
        streams=4 * width,
        math="vector",
    )
    yield matmul("output", p, width, d)


@mixer_ops.register(S4)
def _(mixer: S4, d: Number, p: Pass) -> Iterator[Op]:
    state = d * mixer.d_state / p.tensor
    # A convolution by FFT over the sequence: three transforms of twice the length, 5 N log2 N each.
    length = np.maximum(2.0 * p.new, 2.0)
    fft = 3 * 5 * 2.0 * np.log2(length) * d / p.tensor
    yield _recurrence(
        "state-space convolution",
        p,
        state=state,
        step_flops=8.0 * state,
        chunk_flops=fft,
        streams=6 * d,
        math="vector",
    )
    yield matmul("output and gate", p, d, 2 * d)


@singledispatch
def ffn_ops(ffn: object, d: Number, p: Pass) -> Iterator[Op]:
    """Operations of one feed-forward."""
    raise TypeError(f"no operations for {type(ffn).__name__}")


@ffn_ops.register(FeedForward)
def _(ffn: FeedForward, d: Number, p: Pass) -> Iterator[Op]:
    width = ffn.d_ff * p.width
    yield matmul("ffn up", p, d, (2 if ffn.is_gated else 1) * width)
    # A gate and what it gates are read, their product is written.
    yield elementwise("activation", p, width / p.tensor * (1.5 if ffn.is_gated else 1.0))
    yield matmul("ffn down", p, width, d)


@ffn_ops.register(ChannelMix)
def _(ffn: ChannelMix, d: Number, p: Pass) -> Iterator[Op]:
    width = ffn.d_ff * p.width
    yield elementwise("token shift", p, 2 * d)
    yield matmul("channel-mix key", p, d, width)
    yield matmul("channel-mix receptance", p, d, d)
    yield elementwise("squared relu", p, width / p.tensor)
    yield matmul("channel-mix value", p, width, d)


@ffn_ops.register(MoE)
def _(ffn: MoE, d: Number, p: Pass) -> Iterator[Op]:
    # The shared expert's gate is one more column.
    yield _replicated(matmul("router", p, d, ffn.n_experts + int(ffn.has_shared_gate)), p)
    k, n = ffn.n_experts_per_token, ffn.n_experts
    n_used: float = n if ffn.routing == "soft" else k
    width = ffn.expert.d_ff * p.width
    outside = d if ffn.d_latent is None else ffn.d_latent * p.width
    if ffn.d_latent is not None:
        # Into the experts' narrower stream and out of it, for every token once.
        yield _replicated(matmul("latent projections", p, d, 2 * outside), p)
    size = (3 if ffn.expert.is_gated else 2) * outside * width / p.tensor
    # Experts of a device that at least one token of the group chooses (uniform routing).
    touched = distinct_experts(n, n_used, p.tokens * p.expert) / p.expert
    routed = p.tokens * n_used
    if ffn.capacity_factor is not None and n_used < n:
        # Every expert computes its whole capacity, padding included, however few tokens it got.
        routed = routed * ffn.capacity_factor
    # The products read and write d and their own width once; the activation between them moves a
    # gate and what it gates as well.
    activated = 4.0 if ffn.expert.is_gated else 2.0
    yield Op(
        name="experts",
        kernel="moe",
        flops=2.0 * routed * size,
        weights=touched * size * format_of(p.precision.of_experts).bytes,
        other=routed * (operand_bytes(p) + activation_bytes(p)) * (outside + width / p.tensor)
        + routed * activated * width / p.tensor * activation_bytes(p),
        math=p.precision.math_of(p.precision.of_experts),
        storage=p.precision.of_experts,
        launches=float(MOE_LAUNCHES),
    )
    if p.is_expert_split:
        sends = np.where(np.asarray(p.expert) > 1, 1.0, 0.0)
        yield Op(
            name="all-to-all",
            kernel="comm",
            sent=2 * routed * outside * activation_bytes(p) * (p.expert - 1.0) / p.expert,
            launches=2 * sends,
        )
    if ffn.shared is not None:
        yield from ffn_ops(ffn.shared, d, p)


def distinct_experts(n_experts: Number, per_token: Number, tokens: Number) -> Number:
    """Expected experts that `tokens` tokens touch: E (1 - (1 - k/E)^B), routing uniform."""
    return n_experts * (1.0 - (1.0 - per_token / n_experts) ** tokens)
