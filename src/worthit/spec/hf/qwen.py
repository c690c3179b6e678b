"""Qwen 2, 2.5 and 3, dense and mixtures."""

from __future__ import annotations

from collections.abc import Callable

from worthit.spec.hf._fields import Fields
from worthit.spec.hf._parts import Decoder, usual_sizes, windows
from worthit.spec.hf._read import Reader
from worthit.spec.model import Attention, FeedForward, Ffn, ModelSpec, MoE


def qwen2(fields: Fields) -> ModelSpec:
    """Qwen 2 and 2.5: biased projections of queries, keys and values."""
    decoder = Decoder(fields, kv_heads=32)
    return _dense(decoder, lambda reach: decoder.attention(has_qkv_bias=True, window=reach))


def qwen3(fields: Fields) -> ModelSpec:
    """Qwen 3: each head's queries and keys normalised, a head size of its own."""
    decoder = Decoder(fields, head_dim=128, kv_heads=32)
    has_bias = fields.flag("attention_bias", False)
    return _dense(
        decoder,
        lambda reach: decoder.attention(
            has_qkv_bias=has_bias, has_out_bias=has_bias, qk_norm="head", window=reach
        ),
    )


def qwen2_moe(fields: Fields) -> ModelSpec:
    """Qwen 1.5 and 2 mixtures: one gated shared expert beside the routed ones."""
    decoder = Decoder(fields, kv_heads=16)
    n_layers = decoder.n_layers
    window = _window(fields)
    first_full = fields.size("max_window_layers", default=28, at_least=0)
    # Unlike in the dense models, every second layer below `max_window_layers` is local.
    is_local = [i % 2 == 0 and i < first_full for i in range(n_layers)]
    has_bias = fields.flag("qkv_bias", True)
    shared = decoder.gated_ffn(width="shared_expert_intermediate_size")
    ffns = _sparse(decoder, lambda: _moe(decoder, shared))
    return decoder.model(
        [
            decoder.layer(decoder.attention(has_qkv_bias=has_bias, window=reach), ffn)
            # Of unequal lengths only where a problem was found already.
            for reach, ffn in zip(windows(fields, n_layers, window, is_local), ffns, strict=False)
        ],
        is_tied=False,
    )


def qwen3_moe(fields: Fields) -> ModelSpec:
    """Qwen 3 mixtures: every layer local where windows are used, no shared expert."""
    decoder = Decoder(fields, kv_heads=4)
    has_bias = fields.flag("attention_bias", False)
    attention = decoder.attention(
        has_qkv_bias=has_bias, has_out_bias=has_bias, qk_norm="head", window=_window(fields)
    )
    fields.ignore("max_window_layers")
    fields.choice("use_qk_norm", True, True)
    ffns = _sparse(decoder, lambda: _moe(decoder, None))
    return decoder.model([decoder.layer(attention, ffn) for ffn in ffns], is_tied=False)


def _window(fields: Fields) -> int | None:
    if not fields.flag("use_sliding_window", False):
        fields.ignore("sliding_window")
        return None
    return fields.optional_size("sliding_window", absent=4096)


def _dense(decoder: Decoder, attention: Callable[[int | None], Attention]) -> ModelSpec:
    fields, n_layers = decoder.fields, decoder.n_layers
    window = _window(fields)
    first_local = fields.size("max_window_layers", default=28, at_least=0)
    local = windows(fields, n_layers, window, [i >= first_local for i in range(n_layers)])
    ffn = decoder.gated_ffn()
    return decoder.model([decoder.layer(attention(reach), ffn) for reach in local], is_tied=False)


def _moe(decoder: Decoder, shared: FeedForward | None) -> MoE:
    return decoder.mixture(
        "num_experts",
        "num_local_experts",
        decoder.gated_ffn(width="moe_intermediate_size"),
        shared=shared,
        n_shared_experts=0 if shared is None else 1,
        has_shared_gate=shared is not None,
        has_normalised_weights=decoder.fields.flag("norm_topk_prob", False),
    )


def _sparse(decoder: Decoder, moe: Callable[[], MoE]) -> list[Ffn]:
    """Every `decoder_sparse_step`-th layer a mixture, but for `mlp_only_layers`."""
    fields = decoder.fields
    step = fields.size("decoder_sparse_step", default=1)
    dense_only = fields.indices("mlp_only_layers") or []
    has_experts = fields.get("num_experts", 1, "num_local_experts") != 0
    is_sparse = [
        has_experts and (i + 1) % step == 0 and i not in dense_only for i in range(decoder.n_layers)
    ]
    dense = decoder.gated_ffn() if not all(is_sparse) else None
    sparse = moe() if any(is_sparse) else None
    fields.ignore(
        "intermediate_size", "moe_intermediate_size", "num_experts_per_tok", "norm_topk_prob"
    )
    return [choice for s in is_sparse if (choice := sparse if s else dense) is not None]


READERS: dict[str, Reader] = {
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen2_moe": qwen2_moe,
    "qwen3_moe": qwen3_moe,
}
TEXT_DEFAULTS: dict[str, dict[str, int]] = {
    "qwen2": usual_sizes(151_936, 4096, 22_016, 32, 32, 32_768),
    "qwen3": usual_sizes(151_936, 4096, 22_016, 32, 32, 32_768),
    "qwen2_moe": usual_sizes(
        151_936,
        2048,
        5632,
        24,
        16,
        32_768,
        num_experts=60,
        num_experts_per_tok=4,
        moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632,
    ),
    "qwen3_moe": usual_sizes(
        151_936,
        2048,
        6144,
        24,
        32,
        32_768,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    ),
}
