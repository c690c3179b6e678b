"""The slots that techniques plug into: one interface for every mixer and every feed-forward."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from worthit.nn.cache import MixerCache
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec


class Mixer(nn.Module):
    """Moves information between tokens: `(batch, n, d_model)` to the same shape.

    With a cache the pass continues what the cache holds and adds to it: a prefill and then single
    tokens give what one pass over everything gives.

    `takes_parts` says that a ragged pass (`Tokens.parts`) can be given as it is, with a `Ragged` of
    caches; otherwise its sequences come one by one.
    """

    takes_parts = False

    def forward(self, x: Tensor, tokens: Tokens, cache: Any = None) -> Tensor:
        """Mix the tokens of one pass; causal."""
        raise NotImplementedError

    def new_cache(self) -> MixerCache:
        """An empty cache of this mixer's kind."""
        raise NotImplementedError


# Where the module of each structure stands: `(spec, model) -> module`.
MODULES: dict[type, str] = {
    spec.Attention: "worthit.nn.attention.gqa:build_attention",
    spec.LatentAttention: "worthit.nn.attention.mla:MultiHeadLatentAttention",
    spec.LinearAttention: "worthit.nn.attention.linear_attention:build_linear_attention",
    spec.Mamba: "worthit.nn.ssm.mamba:MambaMixer",
    spec.Mamba2: "worthit.nn.ssm.mamba2:Mamba2Mixer",
    spec.Rwkv: "worthit.nn.ssm.rwkv:build_rwkv",
    spec.S4: "worthit.nn.ssm.s4:build_s4",
    spec.FeedForward: "worthit.nn.ffn:FeedForward",
    spec.ChannelMix: "worthit.nn.ssm.rwkv:build_channel_mix",
    spec.MoE: "worthit.nn.moe.topk_moe:build_moe",
}


def module_for(part: spec.Mixer | spec.Ffn, model: spec.ModelSpec) -> nn.Module:
    """Build the module of one mixer or feed-forward of `model`."""
    path, _, name = MODULES[type(part)].partition(":")
    make = getattr(importlib.import_module(path), name)
    built: nn.Module = make(part, model)
    return built
