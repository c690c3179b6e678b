"""Hybrids of attention and state-space layers: Jamba, Bamba, Granite 4, Falcon-H1, Nemotron-H."""

from __future__ import annotations

from worthit.nn.weights._parts import (
    ATTENTION,
    LAYER,
    experts,
    gated_ffn,
    n_experts_of,
)
from worthit.nn.weights.mamba import mamba2_mixer, mamba_mixer
from worthit.nn.weights.names import Entry, Names, piled
from worthit.spec.model import Attention, ModelSpec

MIXER, MAMBA, FEED_FORWARD = "layers.*.mixers.0", f"{LAYER}.mamba", f"{LAYER}.feed_forward"
# All of them but Granite call the last norm and a layer's second one so.
AROUND = (
    Entry("embedding", "model.embed_tokens"),
    Entry("final_norm", "model.final_layernorm"),
    Entry("head", "lm_head"),
    Entry("layers.*.mixer_norm", f"{LAYER}.input_layernorm"),
    Entry("layers.*.ffn_norm", f"{LAYER}.pre_ff_layernorm"),
)


def jamba(spec: ModelSpec) -> Names:
    """Mamba layers are `mamba`, attention layers `self_attn`; experts have numbers."""
    return Names(
        (
            *AROUND,
            *mamba_mixer(MIXER, MAMBA),
            *ATTENTION,
            *gated_ffn(theirs=FEED_FORWARD),
            Entry("layers.*.ffn.router.linear", f"{FEED_FORWARD}.router"),
            *experts(n_experts_of(spec), f"{FEED_FORWARD}.experts"),
        )
    )


def bamba(spec: ModelSpec) -> Names:
    """The same with Mamba-2 and dense."""
    mixer = mamba2_mixer(MIXER, MAMBA)
    return Names((*AROUND, *mixer, *ATTENTION, *gated_ffn(theirs=FEED_FORWARD)))


def granite(spec: ModelSpec) -> Names:
    """A dense feed-forward that is called shared, also where there is nothing beside it."""
    moe, shared = f"{LAYER}.block_sparse_moe", f"{LAYER}.shared_mlp"
    return Names(
        (
            Entry("embedding", "model.embed_tokens"),
            Entry("final_norm", "model.norm"),
            Entry("head", "lm_head"),
            Entry("layers.*.mixer_norm", f"{LAYER}.input_layernorm"),
            Entry("layers.*.ffn_norm", f"{LAYER}.post_attention_layernorm"),
            *mamba2_mixer(MIXER, MAMBA),
            *ATTENTION,
            Entry("layers.*.ffn.up", f"{shared}.input_linear"),
            Entry("layers.*.ffn.down", f"{shared}.output_linear"),
            Entry("layers.*.ffn.shared.ffn.up", f"{shared}.input_linear"),
            Entry("layers.*.ffn.shared.ffn.down", f"{shared}.output_linear"),
            Entry("layers.*.ffn.router.linear", f"{moe}.router.layer"),
            Entry("layers.*.ffn.experts.up", f"{moe}.input_linear.weight"),
            Entry("layers.*.ffn.experts.down", f"{moe}.output_linear.weight"),
        )
    )


def falcon_h1(spec: ModelSpec) -> Names:
    """Attention and Mamba-2 side by side in every layer."""
    is_attention = [isinstance(mixer, Attention) for mixer in spec.layers[0].mixers]
    attention = f"layers.*.mixers.{is_attention.index(True)}"
    mamba = f"layers.*.mixers.{is_attention.index(False)}"
    return Names(
        (
            *AROUND,
            *(
                Entry(f"{attention}.{part}_proj", f"{LAYER}.self_attn.{part}_proj")
                for part in "qkvo"
            ),
            *mamba2_mixer(mamba, MAMBA),
            *gated_ffn(theirs=FEED_FORWARD),
        )
    )


def nemotron_h(spec: ModelSpec) -> Names:
    """One sublayer a layer, whatever it is called `mixer`."""
    mixer, n = "backbone.layers.*.mixer", n_experts_of(spec)
    ups, downs = (
        tuple(f"{mixer}.experts.{e}.{part}_proj.weight" for e in range(n))
        for part in ("up", "down")
    )
    return Names(
        (
            Entry("embedding", "backbone.embeddings"),
            Entry("final_norm", "backbone.norm_f"),
            Entry("head", "lm_head"),
            Entry("layers.*.mixer_norm", "backbone.layers.*.norm"),
            Entry("layers.*.ffn_norm", "backbone.layers.*.norm"),
            *mamba2_mixer(MIXER, mixer),
            *(Entry(f"{MIXER}.{part}_proj", f"{mixer}.{part}_proj") for part in "qkvo"),
            Entry("layers.*.ffn.up", f"{mixer}.up_proj"),
            Entry("layers.*.ffn.down", f"{mixer}.down_proj"),
            Entry("layers.*.ffn.router.linear", f"{mixer}.gate"),
            Entry("layers.*.ffn.router.selection_bias", f"{mixer}.gate.e_score_correction_bias"),
            Entry("layers.*.ffn.experts.up", ups, piled(n, 1)),
            Entry("layers.*.ffn.experts.down", downs, piled(n, 1)),
            Entry("layers.*.ffn.shared.ffn.up", f"{mixer}.shared_experts.up_proj"),
            Entry("layers.*.ffn.shared.ffn.down", f"{mixer}.shared_experts.down_proj"),
            Entry("layers.*.ffn.latent_in", f"{mixer}.fc1_latent_proj"),
            Entry("layers.*.ffn.latent_out", f"{mixer}.fc2_latent_proj"),
        ),
        base="backbone.",
        # Layers that predict further tokens.
        ignored=(r"^mtp\.",),
    )


NAMES = {
    "jamba": jamba,
    "bamba": bamba,
    "granitemoehybrid": granite,
    "falcon_h1": falcon_h1,
    "nemotron_h": nemotron_h,
}
