"""OLMo 2, OLMoE and Cohere's Command R."""

from __future__ import annotations

from worthit.spec.hf._fields import Fields
from worthit.spec.hf._parts import Decoder, usual_sizes
from worthit.spec.hf._read import Reader
from worthit.spec.model import ModelSpec


def olmo2(fields: Fields) -> ModelSpec:
    """OLMo 2: norms on what the sublayers give out, queries and keys normalised whole."""
    decoder = Decoder(fields, eps=("rms_norm_eps", 1e-5))
    has_bias = fields.flag("attention_bias", False)
    attention = decoder.attention(has_qkv_bias=has_bias, has_out_bias=has_bias, qk_norm="full")
    layer = decoder.layer(attention, decoder.gated_ffn(), placement="output")
    return decoder.model([layer] * decoder.n_layers, is_tied=False)


def olmoe(fields: Fields) -> ModelSpec:
    """OLMoE: every feed-forward a mixture."""
    decoder = Decoder(fields, eps=("rms_norm_eps", 1e-5))
    has_bias = fields.flag("attention_bias", False)
    attention = decoder.attention(
        has_qkv_bias=has_bias,
        has_out_bias=has_bias,
        qk_norm="full",
        qkv_clip=fields.optional_number("clip_qkv"),
    )
    moe = decoder.mixture(
        "num_experts",
        "num_local_experts",
        decoder.gated_ffn(),
        has_normalised_weights=fields.flag("norm_topk_prob", False),
    )
    return decoder.model([decoder.layer(attention, moe)] * decoder.n_layers, is_tied=False)


def cohere(fields: Fields) -> ModelSpec:
    """Command R: attention and feed-forward beside each other on one norm without bias."""
    decoder = Decoder(
        fields,
        theta=500_000.0,
        is_interleaved=True,
        norm="layernorm",
        eps=("layer_norm_eps", 1e-5),
    )
    fields.ignore("model_max_length")
    has_bias = fields.flag("attention_bias", False)
    attention = decoder.attention(
        has_qkv_bias=has_bias,
        has_out_bias=has_bias,
        qk_norm="per-head" if fields.flag("use_qk_norm", False) else "none",
    )
    layer = decoder.layer(attention, decoder.gated_ffn(), is_parallel=True, has_one_norm=True)
    return decoder.model(
        [layer] * decoder.n_layers,
        is_tied=True,
        logit_scale=fields.number("logit_scale", 0.0625),
    )


READERS: dict[str, Reader] = {"olmo2": olmo2, "olmoe": olmoe, "cohere": cohere}
TEXT_DEFAULTS: dict[str, dict[str, int]] = {
    "olmo2": usual_sizes(50_304, 4096, 11_008, 32, 32, 2048),
    "olmoe": usual_sizes(50_304, 2048, 2048, 16, 16, 4096, num_experts=64, num_experts_per_tok=8),
    "cohere": usual_sizes(256_000, 8192, 22_528, 40, 64, 8192),
}
