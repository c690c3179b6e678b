"""The GPT lineage: GPT-2, GPT-NeoX, gpt-oss, OPT, BLOOM, StarCoder2."""

from __future__ import annotations

import math

from worthit.spec.hf._fields import Fields
from worthit.spec.hf._parts import Decoder, activation, rotary_table, usual_sizes, windows
from worthit.spec.hf._read import Reader
from worthit.spec.model import FeedForward, ModelSpec, Position

# The first rows of OPT's table are padding.
OPT_OFFSET = 2
# gpt-oss writes its rotary settings only where they differ from these.
GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def gpt2(fields: Fields) -> ModelSpec:
    """GPT-2: learned positions, LayerNorm, biases everywhere."""
    decoder = Decoder(
        fields,
        norm="layernorm",
        eps=("layer_norm_epsilon", 1e-5),
        has_bias=True,
        has_rope=False,
        has_groups=False,
        names={
            "hidden_size": ("n_embd", "hidden_size"),
            "num_hidden_layers": ("n_layer", "num_hidden_layers"),
            "num_attention_heads": ("n_head", "num_attention_heads"),
            "max_position_embeddings": ("n_positions", "max_position_embeddings"),
        },
    )
    fields.ignore("n_ctx", "reorder_and_upcast_attn")
    ffn = decoder.plain_ffn(
        fields.optional_size("n_inner") or 4 * decoder.d_model,
        activation(fields, "activation_function", "gelu_new"),
    )
    is_scaled = fields.flag("scale_attn_weights", True)
    is_scaled_by_depth = fields.flag("scale_attn_by_inverse_layer_idx", False)
    layers = []
    for i in range(decoder.n_layers):
        scale = None if is_scaled else 1.0
        if is_scaled_by_depth:
            scale = (scale or 1 / math.sqrt(decoder.head_dim)) / (i + 1)
        attention = decoder.attention(has_qkv_bias=True, has_out_bias=True, scale=scale)
        layers.append(decoder.layer(attention, ffn))
    return decoder.model(
        layers,
        is_tied=True,
        position=Position(kind="learned"),
        n_positions=decoder.context_len,
    )


def gpt_neox(fields: Fields) -> ModelSpec:
    """GPT-NeoX and Pythia: a quarter of each head rotated, both sublayers on one stream."""
    decoder = Decoder(
        fields,
        fraction=0.25,
        norm="layernorm",
        eps=("layer_norm_eps", 1e-5),
        has_bias=True,
        has_groups=False,
    )
    has_bias = fields.flag("attention_bias", True)
    attention = decoder.attention(has_qkv_bias=has_bias, has_out_bias=has_bias)
    ffn = decoder.plain_ffn(
        fields.size("intermediate_size"), activation(fields, "hidden_act", "gelu")
    )
    layer = decoder.layer(attention, ffn, is_parallel=fields.flag("use_parallel_residual", True))
    return decoder.model([layer] * decoder.n_layers, is_tied=False)


def gpt_oss(fields: Fields) -> ModelSpec:
    """gpt-oss: sinks, every second layer local, biased experts with a clamped gate."""
    decoder = Decoder(fields, head_dim=64, kv_heads=8, eps=("rms_norm_eps", 1e-5), has_rope=False)
    decoder.rotary = rotary_table(
        fields,
        fields.table("rope_parameters", "rope_scaling", default=GPT_OSS_ROPE),
        decoder.context_len,
        theta=fields.number("rope_theta", 150_000.0),
    )
    decoder.context_len = decoder.rotary.context_len
    n_layers = decoder.n_layers
    has_bias = fields.flag("attention_bias", True)
    # Named by the first files, and said again by the rotary settings.
    fields.ignore("initial_context_length", "experts_per_token")
    fields.choice("hidden_act", "silu", "silu")
    fields.choice("swiglu_alpha", 1.702, 1.702)
    expert = fields.part(
        FeedForward,
        d_ff=fields.size("intermediate_size"),
        activation="clamped-swish",
        activation_limit=fields.number("swiglu_limit", 7.0),
        has_bias=True,
    )
    moe = decoder.mixture("num_local_experts", "num_experts", expert, has_router_bias=True)
    window = fields.optional_size("sliding_window", absent=128)
    layers = [
        decoder.layer(
            decoder.attention(
                has_qkv_bias=has_bias, has_out_bias=has_bias, has_sinks=True, window=reach
            ),
            moe,
        )
        for reach in windows(fields, n_layers, window, [i % 2 == 0 for i in range(n_layers)])
    ]
    return decoder.model(layers, is_tied=False)


def opt(fields: Fields) -> ModelSpec:
    """OPT: learned positions from row 2, at times a narrow embedding or norms after (350m)."""
    is_affine = fields.flag("layer_norm_elementwise_affine", True)
    decoder = Decoder(
        fields,
        norm="layernorm",
        eps=("layer_norm_eps", 1e-5),
        has_weight=is_affine,
        has_bias=is_affine,
        has_rope=False,
        has_groups=False,
    )
    has_bias = fields.flag("enable_bias", True)
    ffn = decoder.plain_ffn(
        fields.size("ffn_dim"),
        activation(fields, "activation_function", "relu"),
        has_bias=has_bias,
    )
    is_pre = fields.flag("do_layer_norm_before", True)
    layer = decoder.layer(
        decoder.attention(has_qkv_bias=has_bias, has_out_bias=has_bias),
        ffn,
        placement="pre" if is_pre else "post",
    )
    narrow = fields.optional_size("word_embed_proj_dim")
    return decoder.model(
        [layer] * decoder.n_layers,
        is_tied=True,
        position=Position(kind="learned", offset=OPT_OFFSET),
        n_positions=decoder.context_len + OPT_OFFSET,
        embedding_dim=narrow if narrow != decoder.d_model else None,
        has_final_norm=is_pre and not fields.flag("_remove_final_layer_norm", False),
    )


def bloom(fields: Fields) -> ModelSpec:
    """BLOOM: ALiBi, a norm on the embedding."""
    decoder = Decoder(
        fields,
        norm="layernorm",
        eps=("layer_norm_epsilon", 1e-5),
        has_bias=True,
        has_rope=False,
        has_groups=False,
        # ALiBi sets no limit: the length it was trained at stands in the published files.
        context_len=2048,
        names={
            "hidden_size": ("hidden_size", "n_embed"),
            "num_hidden_layers": ("n_layer", "num_hidden_layers"),
            "num_attention_heads": ("n_head", "num_attention_heads"),
            "max_position_embeddings": ("seq_length", "max_position_embeddings"),
        },
    )
    # Kernels, not arithmetic.
    fields.ignore(
        "attention_softmax_in_fp32",
        "bias_dropout_fusion",
        "masked_softmax_fusion",
        "offset_alibi",
        "skip_bias_add",
        "skip_bias_add_qkv",
        "slow_but_exact",
    )
    # The residual would start after the norm: no published model, and no placement here.
    fields.choice("apply_residual_connection_post_layernorm", False, False)
    layer = decoder.layer(
        decoder.attention(has_qkv_bias=True, has_out_bias=True),
        decoder.plain_ffn(4 * decoder.d_model, "gelu-tanh"),
    )
    return decoder.model(
        [layer] * decoder.n_layers,
        is_tied=True,
        position=Position(kind="alibi"),
        has_embedding_norm=True,
    )


def starcoder2(fields: Fields) -> ModelSpec:
    """StarCoder2: LayerNorm, biases by one switch, every layer local where a window is set."""
    decoder = Decoder(
        fields, kv_heads=2, norm="layernorm", eps=("norm_epsilon", 1e-5), has_bias=True
    )
    fields.choice("mlp_type", "default", "default")
    fields.choice("norm_type", "layer_norm", "layer_norm")
    has_bias = fields.flag("use_bias", True)
    attention = decoder.attention(
        has_qkv_bias=has_bias,
        has_out_bias=has_bias,
        window=fields.optional_size("sliding_window"),
    )
    ffn = decoder.plain_ffn(
        fields.size("intermediate_size"),
        activation(fields, "hidden_act", "gelu_pytorch_tanh"),
        has_bias=has_bias,
    )
    return decoder.model([decoder.layer(attention, ffn)] * decoder.n_layers, is_tied=True)


READERS: dict[str, Reader] = {
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "gpt_oss": gpt_oss,
    "opt": opt,
    "bloom": bloom,
    "starcoder2": starcoder2,
}
TEXT_DEFAULTS: dict[str, dict[str, int]] = {
    "gpt2": {"vocab_size": 50_257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
    "gpt_neox": usual_sizes(50_432, 6144, 24_576, 44, 64, 2048),
    "gpt_oss": usual_sizes(
        201_088, 2880, 2880, 36, 64, 131_072, num_local_experts=128, num_experts_per_tok=4
    ),
    "opt": {
        "vocab_size": 50_272,
        "hidden_size": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
    },
    "bloom": {"vocab_size": 250_880, "hidden_size": 64, "n_layer": 2, "n_head": 8},
    "starcoder2": usual_sizes(49_152, 3072, 12_288, 30, 24, 4096),
}
