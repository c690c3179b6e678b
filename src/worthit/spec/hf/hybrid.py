"""Hybrids of attention and state-space layers: Jamba, Bamba, Granite 4, Falcon-H1, Nemotron-H."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from worthit.spec.hf._fields import Fields
from worthit.spec.hf._parts import Decoder, activation
from worthit.spec.hf._read import Reader
from worthit.spec.hf.mamba import WITHOUT_EFFECT, groups, step_limits, step_rank
from worthit.spec.model import (
    FeedForward,
    Ffn,
    Layer,
    Mamba,
    Mamba2,
    Mixer,
    ModelSpec,
    MoE,
    Position,
)

# The names of a layer's mixer, before and after transformers 5.
_IS_MAMBA = {
    "mamba": True,
    "linear_attention": True,
    "attention": False,
    "full_attention": False,
}
_NEMOTRON_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_NEMOTRON_NAMES = {
    "mamba": "mamba",
    "linear_attention": "mamba",
    "attention": "attention",
    "full_attention": "attention",
    "mlp": "mlp",
    "moe": "moe",
}
_ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")


def jamba(fields: Fields) -> ModelSpec:
    """Jamba: one attention layer in eight, no positions, every other feed-forward a mixture."""
    decoder = Decoder(fields, kv_heads=8, has_rope=False)
    fields.choice("mamba_inner_layernorms", True, True)
    fields.ignore(
        "sliding_window",
        "use_mamba_kernels",
        "use_mambapy",
        "use_associative_scan",
        "num_logits_to_keep",
        "calc_logits_for_entire_prompt",
        "n_ctx",
        *_ROPE_KEYS,
    )
    mamba = fields.part(
        Mamba,
        d_inner=fields.size("mamba_expand", default=2) * decoder.d_model,
        d_state=fields.size("mamba_d_state", default=16),
        d_conv=fields.size("mamba_d_conv", default=4),
        dt_rank=step_rank(fields, "mamba_dt_rank", decoder.d_model),
        has_bias=fields.flag("mamba_proj_bias", False),
        has_conv_bias=fields.flag("mamba_conv_bias", True),
        has_inner_norms=True,
        norm_eps=decoder.norm.eps,
        activation=activation(fields, "hidden_act"),
    )
    attention = decoder.attention()
    dense = decoder.gated_ffn()
    n_experts = fields.size("num_experts", "num_local_experts")
    n_used = fields.size("num_experts_per_tok")
    fields.at_most("num_experts_per_tok", n_used, "num_experts", n_experts)
    sparse: Ffn = dense
    if n_experts > 1:
        sparse = fields.part(
            MoE,
            n_experts=n_experts,
            n_experts_per_token=n_used,
            expert=dense,
            has_normalised_weights=False,
        )
    is_attention = _periodic(fields, "attn", decoder.n_layers)
    is_sparse = _periodic(fields, "expert", decoder.n_layers)
    layers = [
        decoder.layer(attention if attends else mamba, sparse if routes else dense)
        for attends, routes in zip(is_attention, is_sparse, strict=True)
    ]
    return decoder.model(layers, is_tied=False, position=Position(kind="nope"))


def _periodic(fields: Fields, kind: str, n_layers: int) -> list[bool]:
    period, offset = f"{kind}_layer_period", f"{kind}_layer_offset"
    every = fields.size(period)
    first = fields.size(offset, at_least=0)
    fields.at_most(offset, first + 1, period, every)
    return [i % every == first for i in range(n_layers)]


def bamba(fields: Fields) -> ModelSpec:
    """Bamba: Mamba-2 layers and a few of attention, half of each head rotated."""
    decoder = Decoder(fields, fraction=0.5, kv_heads=8, eps=("rms_norm_eps", 1e-5))
    rotated = decoder.head_dim // 2
    fields.choice("attn_rotary_emb", rotated, rotated)
    fields.ignore("num_logits_to_keep", "use_mamba_kernels", "z_loss_coefficient")
    has_bias = fields.flag("attention_bias", False)
    attention = decoder.attention(has_qkv_bias=has_bias, has_out_bias=has_bias)
    mamba = _mamba2(decoder)
    ffn = decoder.gated_ffn(has_bias=fields.flag("mlp_bias", False))
    indices = fields.indices("attn_layer_indices") or []
    if outside := [i for i in indices if i >= decoder.n_layers]:
        fields.problem(
            "attn_layer_indices",
            f"must be below num_hidden_layers = {decoder.n_layers}, got {outside}",
        )
    layers = [
        decoder.layer(attention if i in indices else mamba, ffn) for i in range(decoder.n_layers)
    ]
    return decoder.model(layers, is_tied=False)


def granitemoehybrid(fields: Fields) -> ModelSpec:
    """Granite 4: Mamba-2 and attention, a mixture beside a dense feed-forward, four multipliers."""
    has_rope = fields.choice("position_embedding_type", "nope", "nope", "rope") == "rope"
    if not has_rope:
        fields.ignore(*_ROPE_KEYS)
    decoder = Decoder(fields, has_rope=has_rope)
    fields.choice("normalization_function", "rmsnorm", "rmsnorm")
    fields.ignore("num_logits_to_keep", "use_mamba_kernels")
    # These switch the feed-forward off or change it in other types; here both are without effect.
    fields.ignore("mlp_bias")
    has_bias = fields.flag("attention_bias", False)
    attention = decoder.attention(
        has_qkv_bias=has_bias,
        has_out_bias=has_bias,
        # It replaces 1/sqrt(head_dim), and is 1 where absent.
        scale=fields.number("attention_multiplier", 1.0),
    )
    mamba = _mamba2(decoder)
    ffn = _granite_ffn(decoder)
    residual_scale = fields.number("residual_multiplier", 1.0)
    layers = [
        decoder.layer(mamba if is_mamba else attention, ffn, residual_scale=residual_scale)
        for is_mamba in _granite_layers(decoder)
    ]
    options = {} if has_rope else {"position": Position(kind="nope")}
    return decoder.model(
        layers,
        is_tied=False,
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        logit_scale=1 / fields.number("logits_scaling", 1.0),
        **options,
    )


def _granite_layers(decoder: Decoder) -> list[bool]:
    """Which layers are Mamba-2: all of them where the file does not say."""
    fields = decoder.fields
    key = "layer_types" if fields.has("layer_types") else "layers_block_type"
    types = fields.per_layer(key, decoder.n_layers)
    if types is None:
        return [True] * decoder.n_layers
    _all_known(fields, key, types, _IS_MAMBA)
    return [_IS_MAMBA.get(str(t), True) for t in types]


def _granite_ffn(decoder: Decoder) -> Ffn:
    fields = decoder.fields
    shared = decoder.gated_ffn(width="shared_intermediate_size")
    n_experts = fields.size("num_local_experts", "num_experts", at_least=0)
    fields.ignore("intermediate_size", "num_experts_per_tok")
    if n_experts == 0:
        return shared
    n_used = fields.size("num_experts_per_tok")
    fields.at_most("num_experts_per_tok", n_used, "num_local_experts", n_experts)
    return fields.part(
        MoE,
        n_experts=n_experts,
        n_experts_per_token=n_used,
        expert=decoder.gated_ffn(),
        shared=shared,
        n_shared_experts=1,
    )


def falcon_h1(fields: Fields) -> ModelSpec:
    """Falcon-H1: attention and Mamba-2 side by side in every layer, muP multipliers throughout."""
    decoder = Decoder(fields, kv_heads=8, eps=("rms_norm_eps", 1e-5))
    fields.choice("mamba_use_mlp", True, True)
    fields.choice("attn_layer_indices", None, None)
    fields.ignore("num_logits_to_keep", "use_mamba_kernels", "mlp_expansion_factor")
    has_bias = fields.flag("attention_bias", False)
    attention = decoder.attention(
        has_qkv_bias=has_bias,
        has_out_bias=has_bias,
        in_scale=fields.number("attention_in_multiplier", 1.0),
        key_scale=fields.number("key_multiplier", 1.0),
        out_scale=fields.number("attention_out_multiplier", 1.0),
    )
    mamba = _mamba2(
        decoder,
        d_inner=fields.optional_size("mamba_d_ssm", absent=1024),
        has_out_bias=fields.flag("projectors_bias", False),
        has_output_norm=fields.flag("mamba_rms_norm", False),
        is_norm_before_gate=fields.flag("mamba_norm_before_gate", True),
        in_scale=fields.number("ssm_in_multiplier", 1.0),
        out_scale=fields.number("ssm_out_multiplier", 1.0),
        part_scales=_numbers(fields, "ssm_multipliers", 5),
    )
    gate_scale, out_scale = _numbers(fields, "mlp_multipliers", 2)
    ffn = fields.part(
        FeedForward,
        d_ff=fields.size("intermediate_size"),
        activation=activation(fields, "hidden_act"),
        has_bias=fields.flag("mlp_bias", False),
        gate_scale=gate_scale,
        out_scale=out_scale,
    )
    layer = fields.part(Layer, mixers=(attention, mamba), ffn=ffn, norm=decoder.norm)
    return decoder.model(
        [layer] * decoder.n_layers,
        is_tied=False,
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        logit_scale=fields.number("lm_head_multiplier", 1.0),
    )


def _numbers(fields: Fields, name: str, n: int) -> tuple[float, ...]:
    """`n` numbers, all 1 where absent."""
    value = fields.get(name, [1.0] * n)
    if (
        not isinstance(value, list | tuple)
        or len(value) != n
        or any(isinstance(x, bool) or not isinstance(x, int | float) for x in value)
    ):
        fields.problem(name, f"must be {n} numbers, got {value!r}")
        return (1.0,) * n
    return tuple(float(x) for x in value)


def _mamba2(
    decoder: Decoder,
    *,
    d_inner: int | None = None,
    has_out_bias: bool | None = None,
    has_output_norm: bool = True,
    is_norm_before_gate: bool = False,
    **options: Any,
) -> Mamba2:
    """Mamba-2 under the keys that Bamba introduced; `d_inner` where it is not `mamba_expand`."""
    fields = decoder.fields
    expanded = fields.size("mamba_expand", default=2) * decoder.d_model
    inner = d_inner or expanded
    inner_name = "mamba_d_ssm" if d_inner else "mamba_expand * hidden_size"
    n_heads = fields.size("mamba_n_heads", default=128)
    fields.divides("mamba_n_heads", n_heads, inner_name, inner)
    head_dim = max(1, inner // n_heads)
    if fields.get("mamba_d_head", "auto") != "auto":
        head_dim = fields.size("mamba_d_head")
        if inner % n_heads == 0 and head_dim * n_heads != inner:
            fields.problem(
                "mamba_d_head",
                f"mamba_n_heads * mamba_d_head must be {inner_name} = {inner}, "
                f"got {n_heads} * {head_dim} = {n_heads * head_dim}",
            )
    has_bias = fields.flag("mamba_proj_bias", False)
    dt_min, dt_max = step_limits(fields)
    fields.ignore(*WITHOUT_EFFECT, "time_step_rank")
    return fields.part(
        Mamba2,
        n_heads=n_heads,
        head_dim=head_dim,
        d_state=fields.size("mamba_d_state", default=256),
        n_groups=groups(fields, "mamba_n_groups", n_heads, "mamba_n_heads", default=1),
        d_conv=fields.size("mamba_d_conv", default=4),
        chunk=fields.size("mamba_chunk_size", default=256),
        has_bias=has_bias,
        has_out_bias=has_bias if has_out_bias is None else has_out_bias,
        has_conv_bias=fields.flag("mamba_conv_bias", True),
        has_output_norm=has_output_norm,
        is_norm_before_gate=is_norm_before_gate,
        norm_eps=decoder.norm.eps,
        activation=activation(fields, "hidden_act"),
        dt_min=dt_min,
        dt_max=dt_max,
        **options,
    )


def nemotron_h(fields: Fields) -> ModelSpec:
    """Nemotron-H: each layer is one thing, Mamba-2, attention without positions, MLP or mixture."""
    kinds = _nemotron_layers(fields)
    decoder = Decoder(
        fields,
        head_dim=128,
        kv_heads=8,
        eps=("layer_norm_epsilon", 1e-5),
        has_rope=False,
        n_layers=len(kinds),
    )
    if not fields.problems and decoder.n_layers != len(kinds):
        fields.problem(
            "num_hidden_layers",
            f"must be the length of the layers' pattern, {len(kinds)}, got {decoder.n_layers}",
        )
    # Without effect in the reference code: its attention has neither bias, window nor positions,
    # its inner width is heads times head size, and the layers that predict further tokens are
    # not part of the model.
    fields.ignore(
        *_ROPE_KEYS,
        *("attention_bias", "attention_head_dim", "sliding_window", "mamba_proj_bias", "expand"),
        *("num_logits_to_keep", "use_mamba_kernels", "rescale_prenorm_residual", "hidden_act"),
        *("time_step_limit", "time_step_max", "time_step_floor", "time_step_rank"),
        *("mamba_dt_limit", "mamba_dt_max", "mamba_expand", "residual_in_fp32"),
        *("norm_eps", "rms_norm_eps", "num_nextn_predict_layers", "mtp_layers_block_type"),
        *("mtp_hybrid_override_pattern", "mamba_ssm_cache_dtype", "moe_shared_expert_overlap"),
    )
    mixers: dict[str, Callable[[Decoder], Mixer]] = {
        "mamba": _nemotron_mamba,
        "attention": Decoder.attention,
    }
    ffns: dict[str, Callable[[Decoder], Ffn]] = {"mlp": _nemotron_mlp, "moe": _nemotron_moe}
    layers = {
        kind: fields.part(
            Layer,
            mixers=(mixers[kind](decoder),) if kind in mixers else (),
            ffn=ffns[kind](decoder) if kind in ffns else None,
            norm=decoder.norm,
        )
        for kind in dict.fromkeys(kinds)
    }
    fields.ignore(*_NEMOTRON_SIZES)
    # The reference code never ties the head, not even where the file says so.
    fields.ignore("tie_word_embeddings")
    return fields.part(
        ModelSpec,
        name="",
        d_model=decoder.d_model,
        vocab_size=decoder.vocab_size,
        layers=tuple(layers[kind] for kind in kinds),
        context_len=decoder.context_len,
        position=Position(kind="nope"),
        norm=decoder.norm,
    )


# Files give the sizes of every kind of layer, also of kinds that the pattern does not use.
_NEMOTRON_SIZES = (
    *("intermediate_size", "mlp_bias", "mlp_hidden_act", "ssm_state_size", "mamba_num_heads"),
    *("mamba_head_dim", "mamba_hidden_act", "n_groups", "conv_kernel", "chunk_size", "use_bias"),
    *("use_conv_bias", "time_step_min", "n_routed_experts", "num_local_experts"),
    *("n_shared_experts", "moe_intermediate_size", "moe_shared_expert_intermediate_size"),
    *("moe_latent_size", "num_experts_per_tok", "routed_scaling_factor", "n_group", "topk_group"),
    *("norm_topk_prob", "mamba_n_groups", "mamba_d_conv", "mamba_conv_bias", "mamba_chunk_size"),
    "mamba_dt_min",
)


def _nemotron_layers(fields: Fields) -> list[str]:
    """Each layer's kind, by a list of names or by a pattern of letters; the list wins."""
    fields.ignore("layer_types", "layers_block_type", "hybrid_override_pattern")
    known: Mapping[str, str] = _NEMOTRON_NAMES
    key = "layers_block_type" if fields.has("layers_block_type") else "layer_types"
    names = fields.get(key)
    if names is None:
        key, known = "hybrid_override_pattern", _NEMOTRON_LETTERS
        names = list(str(fields.get(key, "")))
    if not isinstance(names, list) or not names:
        fields.problem(key, f"must name each layer's kind, got {fields.get(key)!r}")
    elif _all_known(fields, key, names, known):
        return [known[name] for name in names]
    return ["mamba"]


def _nemotron_mamba(decoder: Decoder) -> Mamba2:
    fields = decoder.fields
    has_bias = fields.flag("use_bias", False)
    n_heads = fields.size("mamba_num_heads", default=128)
    name = "mamba_n_groups" if fields.has("mamba_n_groups") else "n_groups"
    return fields.part(
        Mamba2,
        n_heads=n_heads,
        head_dim=fields.size("mamba_head_dim", default=64),
        d_state=fields.size("ssm_state_size", default=128),
        n_groups=groups(fields, name, n_heads, "mamba_num_heads", default=8),
        d_conv=fields.size("mamba_d_conv", "conv_kernel", default=4),
        chunk=fields.size("mamba_chunk_size", "chunk_size", default=128),
        has_bias=has_bias,
        has_out_bias=has_bias,
        has_conv_bias=fields.flag("mamba_conv_bias", True, "use_conv_bias"),
        norm_eps=decoder.norm.eps,
        activation=activation(fields, "mamba_hidden_act"),
        dt_min=fields.number("mamba_dt_min", 0.001, "time_step_min"),
    )


def _nemotron_mlp(decoder: Decoder) -> FeedForward:
    return _plain_ffn(decoder, "intermediate_size")


def _plain_ffn(decoder: Decoder, width: str, *, has_bias: bool | None = None) -> FeedForward:
    fields = decoder.fields
    return fields.part(
        FeedForward,
        d_ff=fields.size(width),
        is_gated=False,
        activation=activation(fields, "mlp_hidden_act", "relu2"),
        has_bias=fields.flag("mlp_bias", False) if has_bias is None else has_bias,
    )


def _nemotron_moe(decoder: Decoder) -> MoE:
    fields = decoder.fields
    n_experts = fields.size("n_routed_experts", "num_local_experts")
    n_used = fields.size("num_experts_per_tok")
    fields.at_most("num_experts_per_tok", n_used, "n_routed_experts", n_experts)
    n_groups = fields.size("n_group", default=1)
    fields.divides("n_group", n_groups, "n_routed_experts", n_experts)
    return fields.part(
        MoE,
        n_experts=n_experts,
        n_experts_per_token=n_used,
        expert=_plain_ffn(decoder, "moe_intermediate_size", has_bias=False),
        # One, of the width given, whatever `n_shared_experts` says.
        shared=_plain_ffn(decoder, "moe_shared_expert_intermediate_size"),
        n_shared_experts=1,
        n_groups=n_groups,
        n_groups_per_token=fields.size("topk_group", default=1),
        n_group_scores=2,
        score="sigmoid",
        has_normalised_weights=fields.flag("norm_topk_prob", True),
        weight_scale=fields.number("routed_scaling_factor", 1.0),
        d_latent=fields.optional_size("moe_latent_size"),
        has_latent_bias=fields.flag("mlp_bias", False),
        balance="bias",
    )


def _all_known(fields: Fields, key: str, names: list[Any], known: Mapping[str, object]) -> bool:
    strange = sorted({str(name) for name in names} - set(known))
    if strange:
        fields.problem(key, f"understood here: {', '.join(known)}; got {', '.join(strange)}")
    return not strange


READERS: dict[str, Reader] = {
    "jamba": jamba,
    "bamba": bamba,
    "granitemoehybrid": granitemoehybrid,
    "falcon_h1": falcon_h1,
    "nemotron_h": nemotron_h,
}
