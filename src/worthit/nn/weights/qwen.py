"""Qwen 2, 2.5 and 3, dense and mixtures."""

from __future__ import annotations

from worthit.nn.weights._parts import LAYER, LLAMA, experts, gated_ffn, n_experts_of
from worthit.nn.weights.names import Entry, Names
from worthit.spec.model import ModelSpec


def dense(spec: ModelSpec) -> Names:
    """As Llama, with norms of queries and keys in Qwen 3."""
    return Names(LLAMA)


def mixture(spec: ModelSpec) -> Names:
    """Experts by number; in Qwen 2 a gated shared expert."""
    return Names(
        (
            *LLAMA,
            Entry("layers.*.ffn.router.linear", f"{LAYER}.mlp.gate"),
            *experts(n_experts_of(spec)),
            *gated_ffn("layers.*.ffn.shared.ffn", f"{LAYER}.mlp.shared_expert"),
            Entry("layers.*.ffn.shared.gate", f"{LAYER}.mlp.shared_expert_gate"),
        )
    )


NAMES = {"qwen2": dense, "qwen3": dense, "qwen2_moe": mixture, "qwen3_moe": mixture}
