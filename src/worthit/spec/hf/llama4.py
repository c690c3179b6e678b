"""Llama 4: chunked layers with rotary positions, every fourth global and without."""

from __future__ import annotations

from worthit.spec.hf._fields import Fields
from worthit.spec.hf._parts import Decoder, usual_sizes
from worthit.spec.hf._read import Reader
from worthit.spec.model import Ffn, Layer, ModelSpec, QueryTemperature


def llama4(fields: Fields) -> ModelSpec:
    """Llama 4's language model: sparse layers with one shared expert, the others dense."""
    decoder = Decoder(
        fields,
        theta=500_000.0,
        is_interleaved=True,
        head_dim=128,
        kv_heads=8,
        eps=("rms_norm_eps", 1e-5),
    )
    moe = decoder.mixture(
        "num_local_experts",
        "num_experts",
        decoder.gated_ffn(),
        shared=decoder.gated_ffn(),
        n_shared_experts=1,
        score="sigmoid",
        has_normalised_weights=False,
        scales_input=True,
    )
    sparse = _sparse_layers(fields, decoder.n_layers)
    dense = decoder.gated_ffn(width="intermediate_size_mlp")
    has_rope = _has_rope(fields, decoder.n_layers)
    chunks = _chunks(fields, has_rope)
    layers = [
        _layer(decoder, moe if i in sparse else dense, rope, chunk)
        for i, (rope, chunk) in enumerate(zip(has_rope, chunks, strict=True))
    ]
    return decoder.model(layers, is_tied=False)


def _layer(decoder: Decoder, ffn: Ffn, has_rope: bool, chunk: int | None) -> Layer:
    fields = decoder.fields
    has_bias = fields.flag("attention_bias", False)
    has_qk_norm = fields.flag("use_qk_norm", True) and has_rope
    temperature = QueryTemperature(
        scale=fields.number("attn_scale", 0.1), floor=fields.number("floor_scale", 8192)
    )
    is_tuned = fields.flag("attn_temperature_tuning", True) and not has_rope
    attention = decoder.attention(
        has_qkv_bias=has_bias,
        has_out_bias=has_bias,
        qk_norm="no-weight" if has_qk_norm else "none",
        is_qk_norm_after_rope=has_qk_norm,
        is_position_free=not has_rope,
        chunk=chunk,
        temperature=temperature if is_tuned else None,
    )
    return decoder.layer(attention, ffn)


def _sparse_layers(fields: Fields, n_layers: int) -> set[int]:
    step = fields.size("interleave_moe_layer_step", default=1)
    listed = fields.indices("moe_layers")
    return set(range(step - 1, n_layers, step)) if listed is None else set(listed)


def _has_rope(fields: Fields, n_layers: int) -> list[bool]:
    every = fields.size("no_rope_layer_interval", default=4)
    # The key's name notwithstanding, 1 marks the layers with rotary positions. Empty is absent.
    listed = fields.get("no_rope_layers") and fields.per_layer("no_rope_layers", n_layers)
    return [bool(x) for x in listed] if listed else [(i + 1) % every != 0 for i in range(n_layers)]


def _chunks(fields: Fields, has_rope: list[bool]) -> list[int | None]:
    size = fields.optional_size("attention_chunk_size", absent=8192)
    types = fields.per_layer("layer_types", len(has_rope))
    if types is None:
        return [size if rope else None for rope in has_rope]
    known = ("chunked_attention", "full_attention")
    for kind in sorted({str(t) for t in types} - set(known)):
        fields.problem("layer_types", f"understood here: {', '.join(known)}; got {kind}")
    return [size if kind == "chunked_attention" else None for kind in types]


READERS: dict[str, Reader] = {"llama4_text": llama4}
TEXT_DEFAULTS: dict[str, dict[str, int]] = {
    "llama4_text": usual_sizes(
        202_048,
        5120,
        8192,
        48,
        40,
        131_072,
        num_local_experts=16,
        num_experts_per_tok=1,
        intermediate_size_mlp=16_384,
    ),
}
