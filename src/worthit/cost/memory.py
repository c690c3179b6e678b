"""Bytes that must be resident on one device, and whether they fit: asked before any time.

Counts weights, caches with their pages, activations tensor by tensor, gradients and optimizer
states, and leaves `RESERVE` of the capacity for contexts, fragmentation and workspaces.
"""

from __future__ import annotations

from functools import singledispatch

import numpy as np

from worthit._record import value
from worthit.cost.cache import layer_cache
from worthit.cost.ledger import Number
from worthit.cost.params import count_layer, count_params, ffn_params
from worthit.spec.case import Runtime
from worthit.spec.formats import format_of, group_of
from worthit.spec.model import (
    Attention,
    ChannelMix,
    FeedForward,
    LatentAttention,
    LinearAttention,
    Mamba,
    Mamba2,
    ModelSpec,
    MoE,
    Rwkv,
)

# Context of the driver and libraries, workspaces and fragmentation: engines give about 0.9 of the
# memory to weights and cache by default (vLLM's gpu_memory_utilization).
RESERVE = 0.08
# Prompt tokens computed at once by a serving engine; longer prefills are cut to this for memory.
PREFILL_TOKENS = 8192
GRADIENT_BYTES = 2.0


@value
class Split:
    """Over how many devices each kind of memory is divided; see `worthit.cost.layout`."""

    tensor: Number = 1.0
    pipeline: Number = 1.0
    expert: Number = 1.0
    context: Number = 1.0
    data: Number = 1.0
    zero: int = 0
    has_sequence_parallel: bool = False


def expert_params(model: ModelSpec) -> int:
    """Parameters of the routed experts: what expert parallelism divides."""
    return sum(
        layer.ffn.n_experts * ffn_params(layer.ffn.expert, model.d_model).total * n
        for layer, n in model.layer_kinds
        if isinstance(layer.ffn, MoE)
    )


def weight_bytes(
    model: ModelSpec, split: Split, *, width: Number = 1.0, depth: Number = 1.0
) -> Number:
    """Bytes of the weights on one device.

    Matrices are stored in `precision.weights`; embeddings and head in `precision.embeddings`.
    Scaling the width multiplies matrices by its square, tables by the width.
    """
    params = count_params(model)
    experts = expert_params(model)
    tables = params.total - _inside(model)
    dense = _inside(model) - experts
    size = format_of(model.precision.weights).bytes
    expert_size = format_of(model.precision.of_experts).bytes
    table_size = format_of(model.precision.embeddings).bytes
    inside = (dense * size + experts / split.expert * expert_size) * width**2 * depth
    return (inside / split.pipeline + tables * table_size * width) / split.tensor


def _inside(model: ModelSpec) -> int:
    """Parameters inside the layers."""
    return sum(count_layer(layer, model.d_model).total * n for layer, n in model.layer_kinds)


@value
class CacheUse:
    """Bytes of one sequence's cache on one device, and of the prefix that all sequences share."""

    per_sequence: Number
    shared: Number


def cache_bytes(
    model: ModelSpec,
    split: Split,
    tokens: Number,
    *,
    runtime: Runtime | None = None,
    shared_tokens: Number = 0.0,
    width: Number = 1.0,
    depth: Number = 1.0,
) -> CacheUse:
    """Bytes of the cache of one sequence of `tokens` on one device, pages rounded up."""
    runtime = Runtime() if runtime is None else runtime
    if runtime.has_paging:
        tokens = np.ceil(tokens / runtime.page_tokens) * runtime.page_tokens
    if runtime.kept_tokens is not None:
        tokens = np.minimum(tokens, runtime.kept_tokens)
        shared_tokens = np.minimum(shared_tokens, tokens)
    state_size = format_of(model.precision.state).bytes
    conv_size = format_of(model.precision.activations).bytes
    total: Number = 0.0
    shared: Number = 0.0
    for layer, n in model.layer_kinds:
        for mixer, entry in zip(
            layer.mixers * layer.n_loops, layer_cache(layer, model.d_model), strict=False
        ):
            # A shared cache is the first application's, which every token passes. A window counts
            # the tokens that passed.
            fraction = 1.0 if layer.shares_loop_cache else layer.token_fraction
            kept = tokens * fraction
            if entry.window is not None:
                kept = np.minimum(kept, entry.window)
            scale = n * width * depth / split.pipeline
            share = _cache_share(mixer, split, width)
            grown = entry.per_token * scale * share / split.context
            total = total + grown * stored_bytes(model, runtime, kept)
            if entry.window is None:
                shared = shared + grown * stored_bytes(model, runtime, fraction * shared_tokens)
            fixed = entry.fixed * state_size + entry.conv * conv_size
            total = total + fixed * n * width * depth / split.pipeline / split.tensor
    return CacheUse(per_sequence=total - shared, shared=shared)


def stored_bytes(model: ModelSpec, runtime: Runtime, tokens: Number) -> Number:
    """Bytes of one element a token for `tokens`: all in the cache's format, or the older ones."""
    narrow = format_of(model.precision.cache).bytes
    if runtime.recent_tokens is None:
        return tokens * narrow
    wide = format_of(model.precision.activations).bytes
    group = group_of(model.precision.cache)
    old = np.floor(np.maximum(tokens - runtime.recent_tokens, 0.0) / group) * group
    return old * narrow + (tokens - old) * wide


def _cache_share(mixer: object, split: Split, width: Number) -> Number:
    """Share of a growing cache that one tensor-parallel device holds: latents are replicated."""
    if isinstance(mixer, Attention):
        heads = mixer.n_kv_heads * width
        return np.maximum(heads / split.tensor, 1.0) / heads
    return 1.0


def serving_activation_bytes(
    model: ModelSpec,
    split: Split,
    runtime: Runtime,
    *,
    batch: Number,
    prompt: Number,
    width: Number = 1.0,
) -> Number:
    """Peak bytes of activations while serving: one chunk of a prefill, or one decode step."""
    size = format_of(model.precision.activations).bytes
    chunk = PREFILL_TOKENS if runtime.prefill_chunk is None else runtime.prefill_chunk
    tokens = np.maximum(np.minimum(prompt, chunk), batch)
    per_token = model.d_model * width * 4 + 2 * _widest(model) * width / split.tensor
    # Logits of every running sequence in fp32, gathered before sampling.
    logits = batch * model.vocab_size * 4.0
    scores: Number = 0.0
    if runtime.attention == "naive":
        heads = max(
            (m.n_heads for m in model.mixers if isinstance(m, Attention | LatentAttention)),
            default=0,
        )
        scores = 2 * heads * width / split.tensor * prompt * prompt * size
    return tokens * per_token * size + logits + scores


def _widest(model: ModelSpec) -> float:
    """Channels of the widest intermediate of one token, experts included."""
    widths = [float(model.d_model)]
    for ffn in model.ffns:
        if isinstance(ffn, MoE):
            shared = ffn.shared.d_ff if ffn.shared else 0
            widths.append(2.0 * (ffn.n_experts_per_token * ffn.expert.d_ff + shared))
        else:
            widths.append(2.0 * ffn.d_ff)
    return max(widths)


def training_activation_bytes(
    model: ModelSpec,
    split: Split,
    runtime: Runtime,
    *,
    tokens: Number,
    seq: Number,
    width: Number = 1.0,
    depth: Number = 1.0,
) -> Number:
    """Bytes kept for the backward pass of one micro-batch of `tokens`, logits aside.

    Tensor by tensor: inputs of every product and of every non-linearity. `full` recomputation keeps
    each layer's input only; `selective` recomputes scores, norms and activations and keeps the
    inputs and outputs of the large products (Korthikanti et al. 2022, arXiv:2205.05198).
    """
    size = format_of(model.precision.activations).bytes
    stream = 1 / split.tensor if split.has_sequence_parallel else 1.0
    keeps_scores = runtime.attention == "naive" and runtime.recompute == "none"
    total: Number = 0.0
    for layer, n in model.layer_kinds:
        d = model.d_model * width
        if runtime.recompute == "full":
            per_token: Number = d * stream
        else:
            kept = 2 if runtime.recompute == "selective" else 4
            per_token = kept * d * stream
            for mixer in layer.mixers:
                per_token = per_token + kept_elements(mixer, d, width) / split.tensor
                if keeps_scores and isinstance(mixer, Attention | LatentAttention):
                    per_token = per_token + 2 * mixer.n_heads * width * seq / split.tensor
            if layer.ffn is not None:
                inner = kept_ffn_elements(layer.ffn, d, width, runtime.recompute == "selective")
                per_token = per_token + inner / split.tensor
        loops = 1 if model.is_equilibrium else layer.n_loops
        total = total + n * depth * loops * layer.token_fraction * per_token
    return total * tokens * size / split.pipeline / split.context


def logits_bytes(model: ModelSpec, split: Split, *, tokens: Number) -> Number:
    """Bytes of one micro-batch's logits and of their gradient, which is kept in fp32.

    Small models drown in them. They live on the last pipeline stage, for one micro-batch at a time.
    """
    size = format_of(model.precision.activations).bytes
    return tokens * model.vocab_size * (size + 4.0) / split.tensor / split.context


@singledispatch
def kept_elements(mixer: object, d: Number, width: Number) -> Number:
    """Elements per token that the backward pass of one mixer needs, its input excluded."""
    return 4.0 * d


@kept_elements.register(Attention)
def _(mixer: Attention, d: Number, width: Number) -> Number:
    # Queries, keys, values, and the output before its projection.
    return (2 * mixer.n_heads + 2 * mixer.n_kv_heads) * width * mixer.head_dim


@kept_elements.register(LatentAttention)
def _(mixer: LatentAttention, d: Number, width: Number) -> Number:
    qk = mixer.qk_nope_head_dim + mixer.qk_rope_head_dim
    latents = mixer.kv_lora_rank + (mixer.q_lora_rank or 0)
    return (mixer.n_heads * (2 * qk + 2 * mixer.v_head_dim) + latents) * width


@kept_elements.register(LinearAttention)
def _(mixer: LinearAttention, d: Number, width: Number) -> Number:
    keys = mixer.n_key_heads * mixer.key_dim
    values = mixer.n_value_heads * mixer.value_dim
    return (4 * keys + 4 * values) * width


@kept_elements.register(Mamba)
def _(mixer: Mamba, d: Number, width: Number) -> Number:
    # x, z, convolved x, step sizes, output; the scan's states are recomputed (section 3.3.2).
    return (5 * mixer.d_inner + mixer.dt_rank + 2 * mixer.d_state) * width


@kept_elements.register(Mamba2)
def _(mixer: Mamba2, d: Number, width: Number) -> Number:
    return (5 * mixer.d_inner + 4 * mixer.n_groups * mixer.d_state) * width


@kept_elements.register(Rwkv)
def _(mixer: Rwkv, d: Number, width: Number) -> Number:
    # Key, value, receptance, output, and what the output is gated by; shifted inputs.
    n_shifts = {4: 3, 5: 4, 6: 5, 7: 6}[mixer.version]
    extra = 0.0 if mixer.version == 4 else 2.0
    return (5.0 + extra) * mixer.d_attention * width + n_shifts * d


@singledispatch
def kept_ffn_elements(ffn: object, d: Number, width: Number, is_selective: bool) -> Number:
    """Elements per token that the backward pass of one feed-forward needs, its input excluded."""
    raise TypeError(f"no activation count for {type(ffn).__name__}")


@kept_ffn_elements.register(FeedForward)
def _(ffn: FeedForward, d: Number, width: Number, is_selective: bool) -> Number:
    # Up (and gate) before the activation; its product is recomputed when selective.
    n = 2 if ffn.is_gated else 1
    return (n + (0 if is_selective else n)) * ffn.d_ff * width


@kept_ffn_elements.register(ChannelMix)
def _(ffn: ChannelMix, d: Number, width: Number, is_selective: bool) -> Number:
    return (1 if is_selective else 2) * ffn.d_ff * width + d


@kept_ffn_elements.register(MoE)
def _(ffn: MoE, d: Number, width: Number, is_selective: bool) -> Number:
    n_used = ffn.n_experts if ffn.routing == "soft" else ffn.n_experts_per_token
    each = kept_ffn_elements(ffn.expert, d, width, is_selective) + d
    shared = 0 if ffn.shared is None else kept_ffn_elements(ffn.shared, d, width, is_selective)
    return n_used * (ffn.capacity_factor or 1.0) * each + shared


@value
class TrainingState:
    """Bytes on one device that training keeps beside activations."""

    weights: Number
    gradients: Number
    optimizer: Number


def training_state(
    model: ModelSpec,
    split: Split,
    runtime: Runtime,
    *,
    width: Number = 1.0,
    depth: Number = 1.0,
) -> TrainingState:
    """Weights, gradients and optimizer states, divided as the ZeRO stage says.

    Stage 1 divides the optimizer states over the data-parallel replicas, 2 the gradients too, 3 the
    weights too (Rajbhandari et al. 2019, arXiv:1910.02054, section 5).
    """
    stored = weight_bytes(model, split, width=width, depth=depth)
    elements = stored / format_of(model.precision.weights).bytes
    gradient = format_of("fp32").bytes if model.precision.weights == "fp32" else GRADIENT_BYTES
    return TrainingState(
        weights=stored / (split.data if split.zero >= 3 else 1.0),
        gradients=elements * gradient / (split.data if split.zero >= 2 else 1.0),
        optimizer=elements
        * runtime.optimizer_bytes_per_param
        / (split.data if split.zero >= 1 else 1.0),
    )
