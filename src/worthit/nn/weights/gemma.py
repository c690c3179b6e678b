"""Gemma 1 to 3: from 2 on, norms before and after each half of a layer."""

from __future__ import annotations

from worthit.nn.weights._parts import AROUND, ATTENTION, LAYER, LLAMA, gated_ffn
from worthit.nn.weights.names import Entry, Names
from worthit.spec.model import ModelSpec


def gemma(spec: ModelSpec) -> Names:
    """As Llama."""
    return Names(LLAMA)


def sandwich(spec: ModelSpec) -> Names:
    """The norm after attention has the name that Llama gives to the one before the feed-forward."""
    return Names(
        (
            *AROUND,
            Entry("layers.*.mixer_norm", f"{LAYER}.input_layernorm"),
            Entry("layers.*.mixer_post_norm", f"{LAYER}.post_attention_layernorm"),
            Entry("layers.*.ffn_norm", f"{LAYER}.pre_feedforward_layernorm"),
            Entry("layers.*.ffn_post_norm", f"{LAYER}.post_feedforward_layernorm"),
            *ATTENTION,
            *gated_ffn(),
        )
    )


NAMES = {"gemma": gemma, "gemma2": sandwich, "gemma3_text": sandwich}
