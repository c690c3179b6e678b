"""EAGLE: one layer that reads the target's features guesses token by token.

Li et al. 2024, "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty",
arXiv:2401.15077, section 3.1; Li et al. 2025, "EAGLE-3: Scaling up Inference
Acceleration of Large Language Models via Training-Time Test", arXiv:2503.01840, section 3.

    g_i = fuse(low_i, middle_i, high_i)                       features of token i (EAGLE-3)
    a_i = layer(project(norm(embed(x_{i+1})), norm(g_i)))     beside the *next* token, already known
    x_{i+2} ~ softmax(head(norm(a_i))),   then a_i stands for g_{i+1}, and so on

| paper | here |
|---|---|
| l, m, h, concatenated; fc | `taps`, each at unit power first; `fusion` |
| e, the embedding | the target's own |
| the decoder layer | `layer.block` |
| LM head over the draft vocabulary, d2t | `head`, `ids` |

How it drafts with them is `feature_drafter`. A departure: the layer reads a projection of embedding and feature, as in EAGLE-1 and in DeepSeek-V3's
multi-token prediction, so that all three are one module (`FeatureHead`).
"""  # noqa: E501 - a row of a table is one line

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from worthit.decode.speculative.heads import Heads, HeadsConfig, rms_normed
from worthit.nn.decoder import Block, Decoder
from worthit.nn.norm import norm_for
from worthit.nn.tokens import Tokens
from worthit.spec.model import Attention, FeedForward, Layer, ModelSpec


class FeatureLayer(nn.Module):
    """Embedding of the next token and feature of this one, through one layer of a decoder."""

    def __init__(self, layer: Layer, model: ModelSpec) -> None:
        super().__init__()
        d = model.d_model
        self.embedding_norm = norm_for(layer.norm, d)
        self.feature_norm = norm_for(layer.norm, d)
        self.project = nn.Linear(2 * d, d, bias=False)
        self.block = Block(layer, model)
        self.out_norm = norm_for(layer.norm, d)

    def forward(self, embedded: Tensor, features: Tensor, tokens: Tokens, cache: Any) -> Tensor:
        """`(batch, n, d_model)` each; what stands for the next features."""
        y: Tensor = self.out_norm(self.block(self.mixed(embedded, features), tokens, cache))
        return y

    def mixed(self, embedded: Tensor, features: Tensor) -> Tensor:
        """What the block reads."""
        both = torch.cat([self.embedding_norm(embedded), self.feature_norm(features)], dim=-1)
        y: Tensor = self.project(both)
        return y


class FeatureHead(Heads):
    """A drafter that continues the target's features: EAGLE's, or a checkpoint's own (`mtp`)."""

    layer: FeatureLayer

    def __init__(self, config: HeadsConfig, model: Decoder, *, has_head: bool = True) -> None:
        super().__init__(config, model.spec.d_model, has_head=has_head)
        # Not its own: neither trained nor saved with it.
        self._model = (model,)

    @property
    def target(self) -> Decoder:
        """The model that it drafts for."""
        return self._model[0]

    def fused(self, features: Tensor) -> Tensor:
        """Features of one width, `(..., d_model)`, from those of the taps."""
        raise NotImplementedError

    def embedded(self, ids: Tensor) -> Tensor:
        """The target's embedding of `ids`."""
        y: Tensor = self.target.embedding(ids)
        return y

    def logits(self, outputs: Tensor) -> Tensor:
        """Over the draft vocabulary."""
        return self.read(outputs)


class Eagle(FeatureHead):
    """One layer of the target's kind, dense and with attention over everything."""

    def __init__(self, config: HeadsConfig, model: Decoder) -> None:
        super().__init__(config, model)
        d = model.spec.d_model
        self.fusion = nn.Linear(len(config.taps) * d, d, bias=False)
        self.layer = FeatureLayer(draft_layer(model.spec), model.spec)
        with torch.no_grad():
            # Begin as if the highest tap were the feature: it is the nearest to the head.
            nn.init.normal_(self.fusion.weight, std=0.02 * d**-0.5)
            self.fusion.weight[:, -d:] += torch.eye(d)

    def fused(self, features: Tensor) -> Tensor:
        """Every tap at unit power, side by side, through `fusion`."""
        parts = features.unflatten(-1, (len(self.config.taps), -1))
        y: Tensor = self.fusion(rms_normed(parts).flatten(-2))
        return y


def draft_layer(model: ModelSpec) -> Layer:
    """The drafter's layer: the last of the target's that has attention, made plain and dense."""
    layers = [layer for layer in model.layers if isinstance(layer.mixers[0], Attention)]
    if layers:
        layer = layers[-1]
        attention = layer.mixers[0]
        assert isinstance(attention, Attention)
    else:
        layer, n_heads = model.layers[-1], max(1, model.d_model // 64)
        attention = Attention(
            n_heads=n_heads, n_kv_heads=n_heads, head_dim=model.d_model // n_heads
        )
    plain = Attention(
        n_heads=attention.n_heads,
        n_kv_heads=attention.n_kv_heads,
        head_dim=attention.head_dim,
        position=attention.position,
    )
    ffn = layer.ffn
    if not isinstance(ffn, FeedForward):
        ffn = FeedForward(d_ff=8 * model.d_model // 3 // 8 * 8)
    return Layer(mixers=(plain,), ffn=ffn, norm=layer.norm)
