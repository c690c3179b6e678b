"""Llama and what is built on its block: Mistral, Mixtral, SmolLM3, Granite, Phi-3, StableLM."""

from __future__ import annotations

from worthit.nn.weights._parts import (
    AROUND,
    ATTENTION,
    LAYER,
    LLAMA,
    OUT,
    PRE_NORMS,
    QKV,
    experts,
    gated_ffn,
    n_experts_of,
)
from worthit.nn.weights.names import BY_HEAD, Entry, Names, split
from worthit.spec.model import Attention, ModelSpec


def llama(spec: ModelSpec) -> Names:
    """Every projection by itself."""
    return Names(LLAMA)


def mixtral(spec: ModelSpec) -> Names:
    """Experts by number, their matrices w1 (gate), w3 (value) and w2 (down)."""
    moe = f"{LAYER}.block_sparse_moe"
    return Names(
        (
            *AROUND,
            *PRE_NORMS,
            *ATTENTION,
            Entry("layers.*.ffn.router.linear", f"{moe}.gate"),
            Entry("layers.*.ffn.router.linear", f"{LAYER}.mlp.gate"),
            *experts(n_experts_of(spec), f"{moe}.experts", ("w1", "w3", "w2")),
        )
    )


def phi3(spec: ModelSpec) -> Names:
    """Queries, keys and values in one matrix; gate and value in one, as here."""
    attention = spec.mixers[0]
    assert isinstance(attention, Attention)
    q, kv = (n * attention.head_dim for n in (attention.n_heads, attention.n_kv_heads))
    parts = tuple(f"layers.*.mixers.0.{name}_proj" for name in "qkv")
    return Names(
        (
            *AROUND,
            *PRE_NORMS,
            Entry(parts, f"{LAYER}.self_attn.qkv_proj", split(q, kv, kv)),
            OUT,
            Entry("layers.*.ffn.up", f"{LAYER}.mlp.gate_up_proj"),
            Entry("layers.*.ffn.down", f"{LAYER}.mlp.down_proj"),
        )
    )


def stablelm(spec: ModelSpec) -> Names:
    """A norm a head, each a tensor of its own."""
    attention = spec.mixers[0]
    assert isinstance(attention, Attention)
    norms = [
        Entry(
            f"layers.*.mixers.0.qk_norm.{ours}.weight",
            tuple(f"{LAYER}.self_attn.{theirs}.norms.{h}.weight" for h in range(n)),
            BY_HEAD,
        )
        for ours, theirs, n in (
            ("query", "q_layernorm", attention.n_heads),
            ("key", "k_layernorm", attention.n_kv_heads),
        )
    ]
    return Names((*AROUND, *PRE_NORMS, *QKV, OUT, *norms, *gated_ffn()))


NAMES = {
    "llama": llama,
    "mistral": llama,
    "mixtral": mixtral,
    "smollm3": llama,
    "granite": llama,
    "phi3": phi3,
    "stablelm": stablelm,
}
