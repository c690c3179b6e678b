"""Mamba, Mamba-2 and Falcon-Mamba; and both mixers' names, which the hybrids share."""

from __future__ import annotations

from torch import Tensor

from worthit.nn.weights.names import Entry, Names, each
from worthit.spec.model import ModelSpec

LAYER = "backbone.layers.*"
AROUND = (
    Entry("embedding", "backbone.embeddings"),
    # The name before transformers had its own.
    Entry("embedding", "backbone.embedding"),
    Entry("final_norm", "backbone.norm_f"),
    Entry("head", "lm_head"),
)


def _without_axis(weight: Tensor) -> Tensor:
    """The weights of a depthwise convolution without its one input channel."""
    return weight.squeeze(1) if weight.dim() == 3 else weight


def _with_axis(weight: Tensor) -> Tensor:
    return weight.unsqueeze(1) if weight.dim() == 2 else weight


DEPTHWISE = each(_without_axis, _with_axis)


def mamba_mixer(ours: str, theirs: str) -> tuple[Entry, ...]:
    """A Mamba mixer, with Jamba's inner norms."""
    return (
        Entry(f"{ours}.in_proj", f"{theirs}.in_proj"),
        Entry(f"{ours}.conv", f"{theirs}.conv1d", DEPTHWISE),
        Entry(f"{ours}.select", f"{theirs}.x_proj"),
        Entry(f"{ours}.step_proj", f"{theirs}.dt_proj"),
        Entry(f"{ours}.log_a", f"{theirs}.A_log"),
        Entry(f"{ours}.skip", f"{theirs}.D"),
        Entry(f"{ours}.out_proj", f"{theirs}.out_proj"),
        Entry(f"{ours}.norms.0", f"{theirs}.dt_layernorm"),
        Entry(f"{ours}.norms.1", f"{theirs}.b_layernorm"),
        Entry(f"{ours}.norms.2", f"{theirs}.c_layernorm"),
    )


def mamba2_mixer(ours: str, theirs: str) -> tuple[Entry, ...]:
    """A Mamba-2 mixer."""
    return (
        Entry(f"{ours}.in_proj", f"{theirs}.in_proj"),
        Entry(f"{ours}.conv", f"{theirs}.conv1d", DEPTHWISE),
        Entry(f"{ours}.step_bias", f"{theirs}.dt_bias"),
        Entry(f"{ours}.log_a", f"{theirs}.A_log"),
        Entry(f"{ours}.skip", f"{theirs}.D"),
        Entry(f"{ours}.norm", f"{theirs}.norm"),
        Entry(f"{ours}.out_proj", f"{theirs}.out_proj"),
    )


def mamba(spec: ModelSpec) -> Names:
    """The mixer is the whole layer."""
    mixer = mamba_mixer("layers.*.mixers.0", f"{LAYER}.mixer")
    return Names((*AROUND, Entry("layers.*.mixer_norm", f"{LAYER}.norm"), *mixer), base="backbone.")


def mamba2(spec: ModelSpec) -> Names:
    """The same around Mamba-2's mixer."""
    mixer = mamba2_mixer("layers.*.mixers.0", f"{LAYER}.mixer")
    return Names((*AROUND, Entry("layers.*.mixer_norm", f"{LAYER}.norm"), *mixer), base="backbone.")


NAMES = {"mamba": mamba, "mamba2": mamba2, "falcon_mamba": mamba}
