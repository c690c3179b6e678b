"""Qwen3-Next: gated-delta layers between attention layers, mixtures of experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worthit.nn.weights._parts import LAYER, LLAMA
from worthit.nn.weights.mamba import DEPTHWISE
from worthit.nn.weights.names import Entry, Layout, Names
from worthit.nn.weights.qwen import mixture
from worthit.spec.model import LinearAttention, ModelSpec


def by_key_heads(n_heads: int, widths: Sequence[int]) -> Layout:
    """One of theirs goes by key heads, and in each through parts, of `widths` rows; ours do not."""

    def to_ours(theirs: Sequence[Tensor]) -> list[Tensor]:
        grouped = theirs[0].unflatten(0, (n_heads, -1))
        return [part.flatten(0, 1) for part in grouped.split(list(widths), dim=1)]

    def to_theirs(ours: Sequence[Tensor]) -> list[Tensor]:
        parts = [part.unflatten(0, (n_heads, -1)) for part in ours]
        return [torch.cat(parts, dim=1).flatten(0, 1)]

    return Layout(to_ours, to_theirs)


def qwen3_next(spec: ModelSpec) -> Names:
    """As Qwen's mixtures, with the linear layers' own projections."""
    linear = next((m for m in spec.mixers if isinstance(m, LinearAttention)), None)
    entries = (*LLAMA, *mixture(spec).entries)
    ignored = (r"^mtp\.",)
    if linear is None:
        return Names(entries, ignored=ignored)
    ours, theirs = "layers.*.mixers.0", f"{LAYER}.linear_attn"
    n_heads, n_values = linear.n_key_heads, linear.n_value_heads // linear.n_key_heads
    values = n_values * linear.value_dim
    # Both kinds of layers end in an `o_proj`, which is named by the layer.
    outs = [
        Entry(f"layers.{i}.mixers.0.o_proj", f"model.layers.{i}.linear_attn.out_proj")
        for i, layer in enumerate(spec.layers)
        if isinstance(layer.mixers[0], LinearAttention)
    ]
    inputs = tuple(f"{ours}.{part}_proj.weight" for part in ("q", "k", "v", "gate"))
    heads = tuple(f"{ours}.{part}_proj.weight" for part in ("strength", "step"))
    widths = (linear.key_dim, linear.key_dim, values, values)
    return Names(
        (
            Entry(inputs, f"{theirs}.in_proj_qkvz.weight", by_key_heads(n_heads, widths)),
            Entry(heads, f"{theirs}.in_proj_ba.weight", by_key_heads(n_heads, (n_values,) * 2)),
            Entry(f"{ours}.conv", f"{theirs}.conv1d", DEPTHWISE),
            Entry(f"{ours}.step_bias", f"{theirs}.dt_bias"),
            Entry(f"{ours}.log_a", f"{theirs}.A_log"),
            Entry(f"{ours}.norm", f"{theirs}.norm"),
            *outs,
            *entries,
        ),
        ignored=ignored,
    )


NAMES = {"qwen3_next": qwen3_next}
