"""Llama and what is built on its block: Mistral, Mixtral, SmolLM3, Granite, Phi-3, StableLM."""

from __future__ import annotations

from worthit.spec.hf._fields import Fields
from worthit.spec.hf._parts import Decoder, usual_sizes, windows
from worthit.spec.hf._read import Reader
from worthit.spec.model import ModelSpec


def llama(fields: Fields) -> ModelSpec:
    """Llama 1 to 3, and the many models published under its type (SmolLM2, Yi, ...)."""
    decoder = Decoder(fields)
    has_bias = fields.flag("attention_bias", False)
    attention = decoder.attention(has_qkv_bias=has_bias, has_out_bias=has_bias)
    ffn = decoder.gated_ffn(has_bias=fields.flag("mlp_bias", False))
    layer = decoder.layer(attention, ffn)
    return decoder.model([layer] * decoder.n_layers, is_tied=False)


def mistral(fields: Fields) -> ModelSpec:
    """Mistral: every layer local where `sliding_window` is set."""
    decoder = Decoder(fields, kv_heads=8)
    # The window is the type's default: only a null switches it off.
    attention = decoder.attention(window=fields.optional_size("sliding_window", absent=4096))
    layer = decoder.layer(attention, decoder.gated_ffn())
    return decoder.model([layer] * decoder.n_layers, is_tied=False)


def mixtral(fields: Fields) -> ModelSpec:
    """Mixtral: every feed-forward a mixture."""
    decoder = Decoder(fields, theta=1e6, kv_heads=8, eps=("rms_norm_eps", 1e-5))
    moe = decoder.mixture("num_local_experts", "num_experts", decoder.gated_ffn())
    layer = decoder.layer(decoder.attention(window=fields.optional_size("sliding_window")), moe)
    return decoder.model([layer] * decoder.n_layers, is_tied=False)


def smollm3(fields: Fields) -> ModelSpec:
    """SmolLM3: every fourth layer without positions, and those local on request."""
    decoder = Decoder(fields, theta=2e6, kv_heads=4)
    n_layers = decoder.n_layers
    has_bias = fields.flag("attention_bias", False)
    every = fields.size("no_rope_layer_interval", default=4)
    # The key's name notwithstanding, 1 marks the layers with rotary positions.
    has_rope = fields.per_layer("no_rope_layers", n_layers)
    if not has_rope:
        has_rope = [(i + 1) % every != 0 for i in range(n_layers)]
    fields.ignore("max_window_layers")
    window = fields.optional_size("sliding_window")
    # The switch decides only where the layers are not listed.
    is_local = fields.flag("use_sliding_window", False)
    local = windows(fields, n_layers, window, [is_local and not rope for rope in has_rope])
    ffn = decoder.gated_ffn(has_bias=fields.flag("mlp_bias", False))
    layers = [
        decoder.layer(
            decoder.attention(
                has_qkv_bias=has_bias,
                has_out_bias=has_bias,
                is_position_free=not rope,
                window=reach,
            ),
            ffn,
        )
        for rope, reach in zip(has_rope, local, strict=True)
    ]
    return decoder.model(layers, is_tied=True)


def granite(fields: Fields) -> ModelSpec:
    """Granite 3: Llama's block with four multipliers."""
    decoder = Decoder(fields)
    has_bias = fields.flag("attention_bias", False)
    attention = decoder.attention(
        has_qkv_bias=has_bias,
        has_out_bias=has_bias,
        # It replaces 1/sqrt(head_dim), and is 1 where absent.
        scale=fields.number("attention_multiplier", 1.0),
    )
    ffn = decoder.gated_ffn(has_bias=fields.flag("mlp_bias", False))
    layer = decoder.layer(attention, ffn, residual_scale=fields.number("residual_multiplier", 1.0))
    return decoder.model(
        [layer] * decoder.n_layers,
        is_tied=False,
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        logit_scale=1 / fields.number("logits_scaling", 1.0),
    )


def phi3(fields: Fields) -> ModelSpec:
    """Phi-3 and Phi-4: fused projections, LongRoPE, at times a rotated share of each head."""
    decoder = Decoder(fields, eps=("rms_norm_eps", 1e-5))
    # Said by every file, scaled or not.
    fields.ignore("original_max_position_embeddings")
    attention = decoder.attention(window=fields.optional_size("sliding_window"))
    layer = decoder.layer(attention, decoder.gated_ffn())
    return decoder.model([layer] * decoder.n_layers, is_tied=False)


def stablelm(fields: Fields) -> ModelSpec:
    """StableLM: LayerNorm, a quarter of each head rotated, optionally parallel."""
    decoder = Decoder(
        fields,
        fraction=0.25,
        kv_heads=32,
        norm="layernorm",
        eps=("layer_norm_eps", 1e-5),
        has_bias=True,
    )
    attention = decoder.attention(
        has_qkv_bias=fields.flag("use_qkv_bias", False),
        qk_norm="per-head" if fields.flag("qk_layernorm", False) else "none",
    )
    is_parallel = fields.flag("use_parallel_residual", False)
    layer = decoder.layer(
        attention, decoder.gated_ffn(), is_parallel=is_parallel, has_one_norm=is_parallel
    )
    return decoder.model([layer] * decoder.n_layers, is_tied=False)


READERS: dict[str, Reader] = {
    "llama": llama,
    "mistral": mistral,
    "mixtral": mixtral,
    "smollm3": smollm3,
    "granite": granite,
    "phi3": phi3,
    "stablelm": stablelm,
}
TEXT_DEFAULTS: dict[str, dict[str, int]] = {
    "llama": usual_sizes(32_000, 4096, 11_008, 32, 32, 2048),
    "mistral": usual_sizes(32_000, 4096, 14_336, 32, 32, 131_072),
    "mixtral": usual_sizes(
        32_000, 4096, 14_336, 32, 32, 131_072, num_local_experts=8, num_experts_per_tok=2
    ),
    "smollm3": usual_sizes(128_256, 2048, 11_008, 36, 16, 32_768),
    "granite": usual_sizes(32_000, 4096, 11_008, 32, 32, 2048),
    "phi3": usual_sizes(32_064, 3072, 8192, 32, 32, 4096),
    "stablelm": usual_sizes(50_304, 2560, 6912, 32, 32, 4096),
}
