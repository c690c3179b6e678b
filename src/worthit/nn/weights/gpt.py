"""The GPT lineage: GPT-2, GPT-NeoX, gpt-oss, OPT, BLOOM, StarCoder2."""

from __future__ import annotations

from worthit.nn.weights._parts import AROUND, ATTENTION, LAYER, PRE_NORMS
from worthit.nn.weights.names import (
    DEINTERLEAVED,
    TRANSPOSED,
    Entry,
    Layout,
    Names,
    heads_of_parts,
    split,
)
from worthit.spec.model import Attention, ModelSpec

QKV = tuple(f"layers.*.mixers.0.{name}_proj" for name in "qkv")
OUT = "layers.*.mixers.0.o_proj"


def gpt2(spec: ModelSpec) -> Names:
    """Every matrix as (in, out); queries, keys and values in one."""
    layer, d = "transformer.h.*", spec.d_model
    return Names(
        (
            Entry("embedding", "transformer.wte"),
            Entry("positions", "transformer.wpe"),
            Entry("final_norm", "transformer.ln_f"),
            Entry("head", "lm_head"),
            Entry("layers.*.mixer_norm", f"{layer}.ln_1"),
            Entry("layers.*.ffn_norm", f"{layer}.ln_2"),
            Entry(QKV, f"{layer}.attn.c_attn", TRANSPOSED.then(split(d, d, d))),
            Entry(OUT, f"{layer}.attn.c_proj", TRANSPOSED),
            Entry("layers.*.ffn.up", f"{layer}.mlp.c_fc", TRANSPOSED),
            Entry("layers.*.ffn.down", f"{layer}.mlp.c_proj", TRANSPOSED),
        ),
        base="transformer.",
    )


def gpt_neox(spec: ModelSpec) -> Names:
    """Query, key and value head by head."""
    layer = "gpt_neox.layers.*"
    return Names(
        (
            Entry("embedding", "gpt_neox.embed_in"),
            Entry("final_norm", "gpt_neox.final_layer_norm"),
            Entry("head", "embed_out"),
            Entry("head", "lm_head"),
            Entry("layers.*.mixer_norm", f"{layer}.input_layernorm"),
            Entry("layers.*.ffn_norm", f"{layer}.post_attention_layernorm"),
            Entry(QKV, f"{layer}.attention.query_key_value", _head_by_head(spec)),
            Entry(OUT, f"{layer}.attention.dense"),
            Entry("layers.*.ffn.up", f"{layer}.mlp.dense_h_to_4h"),
            Entry("layers.*.ffn.down", f"{layer}.mlp.dense_4h_to_h"),
        ),
        base="gpt_neox.",
    )


def bloom(spec: ModelSpec) -> Names:
    """Query, key and value head by head; a norm on the embedding."""
    layer = "transformer.h.*"
    return Names(
        (
            Entry("embedding", "transformer.word_embeddings"),
            Entry("embedding_norm", "transformer.word_embeddings_layernorm"),
            Entry("final_norm", "transformer.ln_f"),
            Entry("head", "lm_head"),
            Entry("layers.*.mixer_norm", f"{layer}.input_layernorm"),
            Entry("layers.*.ffn_norm", f"{layer}.post_attention_layernorm"),
            Entry(QKV, f"{layer}.self_attention.query_key_value", _head_by_head(spec)),
            Entry(OUT, f"{layer}.self_attention.dense"),
            Entry("layers.*.ffn.up", f"{layer}.mlp.dense_h_to_4h"),
            Entry("layers.*.ffn.down", f"{layer}.mlp.dense_4h_to_h"),
        ),
        base="transformer.",
    )


def opt(spec: ModelSpec) -> Names:
    """Norms of one name before or after, at times projections around a narrow embedding."""
    layer = "model.decoder.layers.*"
    return Names(
        (
            Entry("embedding", "model.decoder.embed_tokens"),
            Entry("positions", "model.decoder.embed_positions"),
            Entry("embedding_in", "model.decoder.project_in"),
            Entry("embedding_out", "model.decoder.project_out"),
            Entry("final_norm", "model.decoder.final_layer_norm"),
            Entry("head", "lm_head"),
            Entry("layers.*.mixer_norm", f"{layer}.self_attn_layer_norm"),
            Entry("layers.*.mixer_post_norm", f"{layer}.self_attn_layer_norm"),
            Entry("layers.*.ffn_norm", f"{layer}.final_layer_norm"),
            Entry("layers.*.ffn_post_norm", f"{layer}.final_layer_norm"),
            *(
                Entry(ours, f"{layer}.self_attn.{name}_proj")
                for ours, name in zip(QKV, "qkv", strict=True)
            ),
            Entry(OUT, f"{layer}.self_attn.out_proj"),
            Entry("layers.*.ffn.up", f"{layer}.fc1"),
            Entry("layers.*.ffn.down", f"{layer}.fc2"),
        ),
    )


def gpt_oss(spec: ModelSpec) -> Names:
    """Experts in one tensor as (in, out), in which gate and value alternate."""
    mlp = f"{LAYER}.mlp"
    return Names(
        (
            *AROUND,
            *PRE_NORMS,
            *ATTENTION,
            Entry("layers.*.mixers.0.sinks", f"{LAYER}.self_attn.sinks"),
            Entry("layers.*.ffn.router.linear", f"{mlp}.router"),
            Entry(
                "layers.*.ffn.experts.up",
                f"{mlp}.experts.gate_up_proj",
                TRANSPOSED.then(DEINTERLEAVED),
            ),
            Entry(
                "layers.*.ffn.experts.up_bias", f"{mlp}.experts.gate_up_proj_bias", DEINTERLEAVED
            ),
            Entry("layers.*.ffn.experts.down", f"{mlp}.experts.down_proj", TRANSPOSED),
            Entry("layers.*.ffn.experts.down_bias", f"{mlp}.experts.down_proj_bias"),
        )
    )


def starcoder2(spec: ModelSpec) -> Names:
    """As Llama but for the feed-forward, which has no gate."""
    return Names(
        (
            *AROUND,
            *PRE_NORMS,
            *ATTENTION,
            Entry("layers.*.ffn.up", f"{LAYER}.mlp.c_fc"),
            Entry("layers.*.ffn.down", f"{LAYER}.mlp.c_proj"),
        )
    )


def _head_by_head(spec: ModelSpec) -> Layout:
    attention = spec.mixers[0]
    assert isinstance(attention, Attention)
    return heads_of_parts(attention.n_heads, 3, attention.head_dim)


NAMES = {
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "gpt_oss": gpt_oss,
    "opt": opt,
    "bloom": bloom,
    "starcoder2": starcoder2,
}
