"""What each mixer and each feed-forward computes and moves in one pass.

One function a structure. `d` is the width of the residual stream (scaled by `p.width`); head
counts and inner widths scale with it, head sizes, states, ranks per head and expert counts do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch

import numpy as np

from worthit.cost import recurrent
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
# Gather and scatter around the experts, and two grouped products: kernels beside the router's.
MOE_LAUNCHES = 4


# Product, scale and mask, softmax, product.
UNFUSED_LAUNCHES = 4.0


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
    if mixer.n_features is not None:
        yield from recurrent.features(mixer, heads, kv_heads, p)
        yield matmul("attention output", p, q, d)
        return
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
    cached = 2 * p.sharded(kv_heads) * mixer.head_dim
    unmasked = None if mixer.low_rank is None else visible
    if mixer.sparse_keys is not None:
        yield from _choice(mixer, d, heads, kv_heads, p)
        size, n_blocks = mixer.sparse_blocks
        visible, unmasked = np.minimum(visible, size * n_blocks), size * n_blocks
    yield attend(
        p,
        heads=heads / p.tensor,
        d_qk=mixer.head_dim,
        d_v=mixer.head_dim,
        visible=visible,
        cached=cached,
        unmasked=unmasked,
    )
    if mixer.sparse_near is not None:
        near = attend(
            p,
            heads=heads / p.tensor,
            d_qk=mixer.head_dim,
            d_v=mixer.head_dim,
            visible=p.visible(mixer.sparse_near),
            cached=cached,
        )
        yield near
    yield matmul("attention output", p, q, d)


def _choice(mixer: Attention, d: Number, heads: Number, kv_heads: Number, p: Pass) -> Iterator[Op]:
    """Which blocks each token reads: scores on one key a block; values too where they are read.

    Compressed keys are their block's mean, or learned (native sparse attention); a server keeps
    them, so that a pass compresses new tokens alone.
    """
    size, width = mixer.sparse_blocks[0], mixer.head_dim
    # Whole blocks before the token's own. Unfused, all of the pass are scored and masked after.
    seen = np.floor((p.past + p.new) / size)
    if p.is_fused:
        seen = np.minimum(p.visible() / size, seen)
    n_products = 1
    if mixer.sparse_near is not None:
        n_products = 2
        yield matmul("gates of the branches", p, d, 3 * heads)
        compressed = matmul(
            "compressed keys and values", p, width, 2 * width, tokens=p.tokens * kv_heads
        )
        compressed.weights = compressed.weights * size
        yield compressed
    yield Op(
        name="choice of blocks",
        kernel="attention",
        flops=2.0 * n_products * p.tokens * heads / p.tensor * width * seen / p.context,
        cache=n_products
        * p.batch
        * p.sharded(kv_heads)
        * width
        * (p.past / size)
        * format_of(p.precision.cache).bytes
        / p.context,
        # One kernel either way: what fusing saves is in `attend`.
        other=p.tokens * heads / p.tensor * width * activation_bytes(p),
    )


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


mixer_ops.register(LinearAttention)(recurrent.linear_attention)
mixer_ops.register(Mamba)(recurrent.mamba)
mixer_ops.register(Mamba2)(recurrent.mamba2)
mixer_ops.register(Rwkv)(recurrent.rwkv)
mixer_ops.register(S4)(recurrent.s4)


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
    if ffn.has_receptance:
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
