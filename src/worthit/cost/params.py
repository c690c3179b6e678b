"""Parameters, counted to the unit from a `ModelSpec`.

One function a structure, each returning how many parameters it holds. `Count` keeps apart what is
stored (`total`) and what one token uses (`active`); they differ only in mixtures of experts.
"""

from __future__ import annotations

from functools import singledispatch

from worthit._record import value
from worthit.spec.model import (
    S4,
    Attention,
    ChannelMix,
    FeedForward,
    LatentAttention,
    Layer,
    LinearAttention,
    Mamba,
    Mamba2,
    ModelSpec,
    MoE,
    Norm,
    Rwkv,
)


@value
class Count:
    """Parameters stored, and parameters that one token uses."""

    total: int
    active: int


@value
class Params:
    """A model's parameters; `embedding` is the input table alone, counted once when tied.

    `active_without_embeddings` is what one token uses of the layers and the final norm: neither
    tables (input, positions) nor the output head.
    """

    total: int
    active: int
    active_without_embeddings: int
    embedding: int


def count_params(model: ModelSpec) -> Params:
    """Count `model`'s parameters as the reference modelling code allocates them."""
    layers = [(count_layer(layer, model.d_model), n) for layer, n in model.layer_kinds]
    inside = sum(c.total * n for c, n in layers)
    inside_active = sum(c.active * n for c, n in layers)

    width = model.embedding_dim or model.d_model
    embedding = model.vocab_size * width
    head = 0 if model.has_tied_embeddings else model.vocab_size * width
    head += model.vocab_size if model.has_head_bias else 0
    tables = model.n_positions * model.d_model
    if width != model.d_model:
        tables += 2 * width * model.d_model
    if model.has_embedding_norm:
        tables += norm_params(model.norm, model.d_model)
    final_norm = norm_params(model.norm, model.d_model) if model.has_final_norm else 0
    around = embedding + head + tables + model.n_extra_params
    return Params(
        total=around + inside + final_norm,
        active=around + inside_active + final_norm,
        active_without_embeddings=inside_active + final_norm,
        embedding=embedding,
    )


def count_layer(layer: Layer, d_model: int) -> Count:
    """Count one layer: mixers, feed-forward, norms and a router of tokens for each application."""
    mixers = sum(mixer_params(mixer, d_model) for mixer in layer.mixers)
    ffn = Count(0, 0) if layer.ffn is None else ffn_params(layer.ffn, d_model)
    norms = n_norms(layer) * norm_params(layer.norm, d_model)
    router = d_model * layer.n_loops if layer.token_fraction < 1 else 0
    rest = mixers + norms + router + layer.n_extra_params
    return Count(total=rest + ffn.total, active=rest + ffn.active)


def n_norms(layer: Layer) -> int:
    """Norms over `d_model` in one layer."""
    n_sublayers = (1 if layer.mixers else 0) + (0 if layer.ffn is None else 1)
    if layer.is_parallel and layer.has_one_norm:
        n_sublayers = 1
    return 2 * n_sublayers if layer.placement == "sandwich" else n_sublayers


def norm_params(norm: Norm, width: int) -> int:
    """Weights and biases of one norm over `width` channels."""
    return width * (int(norm.has_weight) + int(norm.has_bias))


@singledispatch
def mixer_params(mixer: object, d_model: int) -> int:
    """Parameters of one mixer in a stream of `d_model` channels."""
    raise TypeError(f"no parameter count for {type(mixer).__name__}")


@mixer_params.register(Attention)
def _(mixer: Attention, d_model: int) -> int:
    q, kv = mixer.n_heads * mixer.head_dim, mixer.n_kv_heads * mixer.head_dim
    # The gate is projected with the queries.
    n_q = 2 if mixer.has_output_gate else 1
    matrices = d_model * (n_q * q + 2 * kv) + q * d_model
    biases = (n_q * q + 2 * kv if mixer.has_qkv_bias else 0) + (
        d_model if mixer.has_out_bias else 0
    )
    qk_norm = {
        "none": 0,
        "no-weight": 0,
        "head": 2 * mixer.head_dim,
        "full": q + kv,
        "per-head": q + kv,
    }[mixer.qk_norm] * (2 if mixer.has_qk_norm_bias else 1)
    sinks = mixer.n_heads if mixer.has_sinks else 0
    native = 0
    if mixer.sparse_near is not None:
        # Blocks of keys and of values compressed to one each, and three gates a head.
        block, _ = mixer.sparse_blocks
        native = 2 * (block * mixer.head_dim + 1) * mixer.head_dim
        native += (d_model + 1) * 3 * mixer.n_heads
    return matrices + biases + qk_norm + sinks + native


@mixer_params.register(LatentAttention)
def _(mixer: LatentAttention, d_model: int) -> int:
    qk_head = mixer.qk_nope_head_dim + mixer.qk_rope_head_dim
    if mixer.q_lora_rank is None:
        query = d_model * mixer.n_heads * qk_head
    else:
        # Down, norm on the latent, up.
        query = mixer.q_lora_rank * (d_model + 1 + mixer.n_heads * qk_head)
    down = d_model * (mixer.kv_lora_rank + mixer.qk_rope_head_dim)
    norm = mixer.kv_lora_rank
    up = mixer.kv_lora_rank * mixer.n_heads * (mixer.qk_nope_head_dim + mixer.v_head_dim)
    out = mixer.n_heads * mixer.v_head_dim * d_model
    bias = 0
    if mixer.has_bias:
        bias = (mixer.q_lora_rank or 0) + mixer.kv_lora_rank + mixer.qk_rope_head_dim + d_model
    return query + down + norm + up + out + bias


@mixer_params.register(LinearAttention)
def _(mixer: LinearAttention, d_model: int) -> int:
    keys, values = mixer.n_key_heads * mixer.key_dim, mixer.n_value_heads * mixer.value_dim
    matrices = d_model * (2 * keys + values) + values * d_model
    gate = d_model * values if mixer.has_output_gate else 0
    # Decay and write strength: one of each per value head, with A and the time-step bias.
    rules = {
        "linear": 0,
        "retention": 0,
        "gated": d_model * keys,
        "delta": d_model * mixer.n_value_heads,
        "gated-delta": 2 * d_model * mixer.n_value_heads + 2 * mixer.n_value_heads,
    }[mixer.kind]
    conv = (2 * keys + values) * mixer.d_conv
    norm = mixer.value_dim if mixer.has_output_norm else 0
    return matrices + gate + rules + conv + norm


@mixer_params.register(Mamba)
def _(mixer: Mamba, d_model: int) -> int:
    inner = mixer.d_inner
    projections = d_model * 2 * inner + inner * d_model
    conv = inner * mixer.d_conv + (inner if mixer.has_conv_bias else 0)
    selection = inner * (mixer.dt_rank + 2 * mixer.d_state) + mixer.dt_rank * inner + inner
    state = inner * mixer.d_state + inner
    bias = 2 * inner + d_model if mixer.has_bias else 0
    has_norms = mixer.has_inner_norms and mixer.has_inner_norm_weights
    norms = mixer.dt_rank + 2 * mixer.d_state if has_norms else 0
    return projections + conv + selection + state + bias + norms


@mixer_params.register(Mamba2)
def _(mixer: Mamba2, d_model: int) -> int:
    inner, groups = mixer.d_inner, mixer.n_groups * mixer.d_state
    in_width = 2 * inner + 2 * groups + mixer.n_heads
    projections = d_model * in_width + inner * d_model
    conv_width = inner + 2 * groups
    conv = conv_width * mixer.d_conv + (conv_width if mixer.has_conv_bias else 0)
    # A, D and the time-step bias: one number per head each.
    heads = 3 * mixer.n_heads
    norm = inner if mixer.has_output_norm else 0
    bias = (in_width if mixer.has_bias else 0) + (d_model if mixer.has_out_bias else 0)
    return projections + conv + heads + norm + bias


@mixer_params.register(Rwkv)
def _(mixer: Rwkv, d_model: int) -> int:
    inner, rank, mixes = mixer.d_attention, mixer.rank, mixer.mix_rank
    if mixer.version == 4:
        # Key, value, receptance, output; decay and first bonus; three token-shift mixes.
        return 4 * d_model * inner + 2 * inner + 3 * d_model
    if mixer.version == 5:
        # A gate more; decay, bonus, and the norm's weight and bias; four mixes.
        return 5 * d_model * inner + 4 * inner + 4 * d_model
    if mixer.version == 6:
        # Mixes and decay have a low-rank part: five mixes from one first mix.
        low_rank = 2 * d_model * 5 * mixes + (d_model + inner) * rank
        return 5 * d_model * inner + 4 * inner + 6 * d_model + low_rank
    # Decay, rate, gate and the share of the first values are low-rank, all but the gate with a
    # bias; two scales of the key, bonus and norm; six mixes.
    n_biased = 2 + int(mixer.has_value_mix)
    low_rank = (n_biased + 1) * (d_model + inner) * rank + n_biased * inner
    return 4 * d_model * inner + 5 * inner + 6 * d_model + low_rank


@mixer_params.register(S4)
def _(mixer: S4, d_model: int) -> int:
    # Complex A, B, C and the low-rank factors as pairs of reals (conjugate halves), step and D,
    # then the output projection with a gate (GLU).
    state = mixer.d_state // 2
    return d_model * (2 * state * (3 + mixer.rank) + 2) + 2 * d_model * d_model


@singledispatch
def ffn_params(ffn: object, d_model: int) -> Count:
    """Parameters of one feed-forward in a stream of `d_model` channels."""
    raise TypeError(f"no parameter count for {type(ffn).__name__}")


@ffn_params.register(FeedForward)
def _(ffn: FeedForward, d_model: int) -> Count:
    up = 2 * ffn.d_ff if ffn.is_gated else ffn.d_ff
    n = d_model * up + ffn.d_ff * d_model + (up + d_model if ffn.has_bias else 0)
    return Count(total=n, active=n)


@ffn_params.register(ChannelMix)
def _(ffn: ChannelMix, d_model: int) -> Count:
    # Key up and value down, each mix of token shift; a receptance and its own before version 7.
    n = 2 * d_model * ffn.d_ff + d_model
    n += d_model * d_model + d_model if ffn.has_receptance else 0
    return Count(total=n, active=n)


@ffn_params.register(MoE)
def _(ffn: MoE, d_model: int) -> Count:
    expert = ffn_params(ffn.expert, ffn.d_latent or d_model).total
    latent = 0
    if ffn.d_latent is not None:
        latent = 2 * d_model * ffn.d_latent
        latent += d_model + ffn.d_latent if ffn.has_latent_bias else 0
    router = d_model * ffn.n_experts + (ffn.n_experts if ffn.has_router_bias else 0)
    shared = 0 if ffn.shared is None else ffn_params(ffn.shared, d_model).total
    gate = d_model if ffn.has_shared_gate else 0
    always = router + shared + gate + latent
    n_used = ffn.n_experts if ffn.routing == "soft" else ffn.n_experts_per_token
    return Count(total=always + ffn.n_experts * expert, active=always + n_used * expert)
