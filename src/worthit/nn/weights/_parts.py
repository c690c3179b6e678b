"""Entries that many families share: the names that Llama's code started."""

from __future__ import annotations

from worthit.nn.weights.names import STACKED, Entry, piled
from worthit.spec.model import ModelSpec, MoE

LAYER = "model.layers.*"
AROUND = (
    Entry("embedding", "model.embed_tokens"),
    Entry("final_norm", "model.norm"),
    Entry("head", "lm_head"),
)
PRE_NORMS = (
    Entry("layers.*.mixer_norm", f"{LAYER}.input_layernorm"),
    Entry("layers.*.ffn_norm", f"{LAYER}.post_attention_layernorm"),
)
QKV = (
    Entry("layers.*.mixers.0.q_proj", f"{LAYER}.self_attn.q_proj"),
    Entry("layers.*.mixers.0.k_proj", f"{LAYER}.self_attn.k_proj"),
    Entry("layers.*.mixers.0.v_proj", f"{LAYER}.self_attn.v_proj"),
)
OUT = Entry("layers.*.mixers.0.o_proj", f"{LAYER}.self_attn.o_proj")
QK_NORM = (
    Entry("layers.*.mixers.0.qk_norm.query", f"{LAYER}.self_attn.q_norm"),
    Entry("layers.*.mixers.0.qk_norm.key", f"{LAYER}.self_attn.k_norm"),
)
ATTENTION = (*QKV, OUT, *QK_NORM)


def gated_ffn(ours: str = "layers.*.ffn", theirs: str = f"{LAYER}.mlp") -> tuple[Entry, ...]:
    """Gate and value projections, which are one matrix here, and the way back."""
    return (
        Entry(f"{ours}.up", (f"{theirs}.gate_proj", f"{theirs}.up_proj"), STACKED),
        Entry(f"{ours}.down", f"{theirs}.down_proj"),
    )


LLAMA = (*AROUND, *PRE_NORMS, *ATTENTION, *gated_ffn())


def experts(
    n_experts: int,
    theirs: str = f"{LAYER}.mlp.experts",
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> tuple[Entry, ...]:
    """Routed experts, one matrix each as published, or all in one tensor as in memory today."""
    gate, up, down = names
    ups = tuple(f"{theirs}.{e}.{name}.weight" for e in range(n_experts) for name in (gate, up))
    downs = tuple(f"{theirs}.{e}.{down}.weight" for e in range(n_experts))
    return (
        Entry("layers.*.ffn.experts.up", ups, piled(n_experts, 2)),
        Entry("layers.*.ffn.experts.down", downs, piled(n_experts, 1)),
        Entry("layers.*.ffn.experts.up", f"{LAYER}.mlp.experts.gate_up_proj"),
        Entry("layers.*.ffn.experts.down", f"{LAYER}.mlp.experts.down_proj"),
    )


def n_experts_of(spec: ModelSpec) -> int:
    """The experts of `spec`'s mixtures; 0 where every feed-forward is dense."""
    return next((ffn.n_experts for ffn in spec.ffns if isinstance(ffn, MoE)), 0)
