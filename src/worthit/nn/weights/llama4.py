"""Llama 4's language model."""

from __future__ import annotations

from worthit.nn.weights._parts import AROUND, ATTENTION, LAYER, PRE_NORMS, gated_ffn
from worthit.nn.weights.names import TRANSPOSED, Entry, Names
from worthit.spec.model import ModelSpec


def llama4(spec: ModelSpec) -> Names:
    """Experts in one tensor as (in, out), gate before value."""
    ffn = f"{LAYER}.feed_forward"
    return Names(
        (
            *AROUND,
            *PRE_NORMS,
            *ATTENTION,
            *gated_ffn("layers.*.ffn", ffn),
            Entry("layers.*.ffn.router.linear", f"{ffn}.router"),
            Entry("layers.*.ffn.experts.up", f"{ffn}.experts.gate_up_proj", TRANSPOSED),
            Entry("layers.*.ffn.experts.down", f"{ffn}.experts.down_proj", TRANSPOSED),
            *gated_ffn("layers.*.ffn.shared.ffn", f"{ffn}.shared_expert"),
        )
    )


NAMES = {"llama4_text": llama4}
