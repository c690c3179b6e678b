"""DeepSeek V2 and V3: latent attention, numbered experts, shared ones beside them."""

from __future__ import annotations

from worthit.nn.weights._parts import (
    AROUND,
    LAYER,
    OUT,
    PRE_NORMS,
    experts,
    gated_ffn,
    n_experts_of,
)
from worthit.nn.weights.names import Entry, Names
from worthit.spec.model import ModelSpec


def deepseek(spec: ModelSpec) -> Names:
    """`a` goes down to a latent, `b` up from it."""
    mixer, attention, mlp = "layers.*.mixers.0", f"{LAYER}.self_attn", f"{LAYER}.mlp"
    return Names(
        (
            *AROUND,
            *PRE_NORMS,
            Entry(f"{mixer}.q_proj", f"{attention}.q_proj"),
            Entry(f"{mixer}.q_down", f"{attention}.q_a_proj"),
            Entry(f"{mixer}.q_norm", f"{attention}.q_a_layernorm"),
            Entry(f"{mixer}.q_up", f"{attention}.q_b_proj"),
            Entry(f"{mixer}.kv_down", f"{attention}.kv_a_proj_with_mqa"),
            Entry(f"{mixer}.kv_norm", f"{attention}.kv_a_layernorm"),
            Entry(f"{mixer}.kv_up", f"{attention}.kv_b_proj"),
            OUT,
            *gated_ffn(),
            Entry("layers.*.ffn.router.linear", f"{mlp}.gate"),
            Entry("layers.*.ffn.router.selection_bias", f"{mlp}.gate.e_score_correction_bias"),
            *experts(n_experts_of(spec)),
            *gated_ffn("layers.*.ffn.shared.ffn", f"{mlp}.shared_experts"),
        ),
        # Layers that predict further tokens are numbered on from the last.
        ignored=(rf"^model\.layers\.{spec.n_layers}\.",),
    )


NAMES = {"deepseek_v2": deepseek, "deepseek_v3": deepseek}
