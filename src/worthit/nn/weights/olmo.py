"""OLMo 2, OLMoE and Cohere's Command R."""

from __future__ import annotations

from worthit.nn.weights._parts import (
    AROUND,
    ATTENTION,
    LAYER,
    LLAMA,
    PRE_NORMS,
    experts,
    gated_ffn,
    n_experts_of,
)
from worthit.nn.weights.names import Entry, Names
from worthit.spec.model import ModelSpec


def olmo2(spec: ModelSpec) -> Names:
    """Norms after each half of a layer alone."""
    return Names(
        (
            *AROUND,
            Entry("layers.*.mixer_post_norm", f"{LAYER}.post_attention_layernorm"),
            Entry("layers.*.ffn_post_norm", f"{LAYER}.post_feedforward_layernorm"),
            *ATTENTION,
            *gated_ffn(),
        )
    )


def olmoe(spec: ModelSpec) -> Names:
    """Experts by number."""
    return Names(
        (
            *AROUND,
            *PRE_NORMS,
            *ATTENTION,
            Entry("layers.*.ffn.router.linear", f"{LAYER}.mlp.gate"),
            *experts(n_experts_of(spec)),
        )
    )


def cohere(spec: ModelSpec) -> Names:
    """As Llama, with one norm a layer."""
    return Names(LLAMA)


NAMES = {"olmo2": olmo2, "olmoe": olmoe, "cohere": cohere}
