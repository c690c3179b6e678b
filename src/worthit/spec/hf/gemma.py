"""Gemma 1 to 3: scaled embeddings, norms by (1 + w), GeGLU; from 2 on local and global layers."""

from __future__ import annotations

import math
from typing import Any

from worthit.spec.hf._fields import Fields
from worthit.spec.hf._parts import Decoder, rotary_table, usual_sizes, windows
from worthit.spec.hf._read import Reader
from worthit.spec.model import FeedForward, ModelSpec, Position

GLOBAL_THETA = 1e6
LOCAL_THETA = 1e4


def gemma(fields: Fields) -> ModelSpec:
    """Gemma 1."""
    decoder = _decoder(fields, head_dim=256, kv_heads=16)
    layer = decoder.layer(decoder.attention(**_biases(fields)), _ffn(decoder))
    return _model(decoder, [layer] * decoder.n_layers)


def gemma2(fields: Fields) -> ModelSpec:
    """Gemma 2: norms before and after, every second layer local, capped logits."""
    decoder = _decoder(fields, head_dim=256, kv_heads=4)
    n_layers = decoder.n_layers
    window = fields.optional_size("sliding_window", absent=4096)
    fields.ignore("sliding_window_size")
    options = _biases(fields) | _scores(fields, softcap=50.0)
    ffn = _ffn(decoder)
    layers = [
        decoder.layer(decoder.attention(window=reach, **options), ffn, placement="sandwich")
        for reach in windows(fields, n_layers, window, [i % 2 == 0 for i in range(n_layers)])
    ]
    return _model(decoder, layers, softcap=30.0)


def gemma3(fields: Fields) -> ModelSpec:
    """Gemma 3: five local layers to a global one, each kind with rotary positions of its own."""
    table = fields.get("rope_parameters")
    is_nested = isinstance(table, dict) and any(isinstance(v, dict) for v in table.values())
    decoder = _decoder(fields, head_dim=256, kv_heads=4, has_rope=False)
    if is_nested:
        by_kind = fields.table("rope_parameters")
        assert by_kind is not None
        spread = rotary_table(
            fields, by_kind.table("full_attention"), decoder.context_len, theta=GLOBAL_THETA
        )
        near = rotary_table(
            fields, by_kind.table("sliding_attention"), decoder.context_len, theta=LOCAL_THETA
        )
        fields.absorb(by_kind)
    else:
        spread = rotary_table(
            fields,
            fields.table("rope_scaling", "rope_parameters"),
            decoder.context_len,
            theta=fields.number("rope_theta", GLOBAL_THETA),
        )
        theta = fields.number("rope_local_base_freq", LOCAL_THETA)
        near = rotary_table(fields, None, decoder.context_len, theta=theta)
    decoder.rotary, decoder.context_len = spread, spread.context_len

    n_layers = decoder.n_layers
    window = fields.optional_size("sliding_window", absent=4096)
    every = fields.size("sliding_window_pattern", "_sliding_window_pattern", default=6)
    is_local = [(i + 1) % every != 0 for i in range(n_layers)]
    options = _biases(fields) | _normed_scores(fields)
    ffn = _ffn(decoder)
    layers = [
        decoder.layer(
            decoder.attention(
                window=reach,
                qk_norm="head",
                position=_own(near.position, spread.position, is_local=reach is not None),
                **options,
            ),
            ffn,
            placement="sandwich",
        )
        for reach in windows(fields, n_layers, window, is_local)
    ]
    return _model(decoder, layers, softcap=None)


def _decoder(fields: Fields, **options: Any) -> Decoder:
    # Attention in both directions makes an encoder of it, which has no cache.
    fields.choice("use_bidirectional_attention", False, False)
    return Decoder(fields, has_unit_offset=True, **options)


def _own(near: Position, spread: Position, *, is_local: bool) -> Position | None:
    return near if is_local and near != spread else None


def _biases(fields: Fields) -> dict[str, Any]:
    has_bias = fields.flag("attention_bias", False)
    return {"has_qkv_bias": has_bias, "has_out_bias": has_bias}


def _scores(fields: Fields, *, softcap: float | None) -> dict[str, Any]:
    return {
        "scale": 1 / math.sqrt(fields.number("query_pre_attn_scalar", 256)),
        "logit_softcap": fields.optional_number("attn_logit_softcapping", absent=softcap),
    }


def _normed_scores(fields: Fields) -> dict[str, Any]:
    """Gemma 3 normalises queries and keys in place of capping: its key is there and not read."""
    return _scores(fields, softcap=None) | {"logit_softcap": None}


def _ffn(decoder: Decoder) -> FeedForward:
    fields = decoder.fields
    name = "hidden_activation" if fields.has("hidden_activation") else "hidden_act"
    # The first Gemma files say "gelu" and mean its approximation by tanh.
    fields.choice(name, "gelu_pytorch_tanh", "gelu_pytorch_tanh", "gelu_new", "gelu")
    fields.ignore("hidden_act")
    return fields.part(FeedForward, d_ff=fields.size("intermediate_size"), activation="gelu-tanh")


def _model(decoder: Decoder, layers: list[Any], *, softcap: float | None = None) -> ModelSpec:
    return decoder.model(
        layers,
        is_tied=True,
        embedding_scale=math.sqrt(decoder.d_model),
        logit_softcap=decoder.fields.optional_number("final_logit_softcapping", absent=softcap),
    )


READERS: dict[str, Reader] = {"gemma": gemma, "gemma2": gemma2, "gemma3_text": gemma3}
TEXT_DEFAULTS: dict[str, dict[str, int]] = {
    "gemma": usual_sizes(256_000, 3072, 24_576, 28, 16, 8192),
    "gemma2": usual_sizes(256_000, 2304, 9216, 26, 8, 8192),
    "gemma3_text": usual_sizes(262_208, 2304, 9216, 26, 8, 131_072),
}
