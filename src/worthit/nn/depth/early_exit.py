"""Early exit: a token stops at the layer from which it can be predicted with confidence.

Schuster et al. 2022, "Confident Adaptive Language Modeling" (CALM), arXiv:2207.07061, sections 3.1
to 3.5; the loss over exits is its equation 5. Token t leaves after the first layer i with

    c_t^i >= lambda_t^i,    c = p_1 - p_2, or cos(d^i, d^(i-1)), or another confidence
    L = sum_i w_i L_i,      w_i = i / sum_j j

| paper | here |
|---|---|
| d_t^i, hidden state after layer i | `x` |
| c_t^i, local confidence | 1 - `uncertainty` |
| lambda_t^i, its threshold | 1 - `threshold` |
| softmax response, top-1 minus top-2 | `margin` |
| hidden-state saturation | `similarity` |

An exit is the final norm and the head, applied earlier. A token that left keeps its state; deeper
layers make their keys and values of that state, so that later tokens find them (section 3.1's state
propagation). They are approximations: a token that left is not what it would have become. Layers in
which no token of the pass is left compute keys and values and nothing else.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from worthit.nn.cache import Cache
from worthit.nn.decoder import Block, Decoder, passed
from worthit.nn.mixer import Mixer
from worthit.nn.tokens import Tokens, tokens_of
from worthit.spec.model import ModelSpec

Measure = Literal["margin", "entropy", "similarity"]


class EarlyExitDecoder(Decoder):
    """A decoder whose tokens may leave after some layers, in evaluation.

    `threshold` is the uncertainty, between 0 and 1, under which they do; 0 keeps everyone to the
    end. `depths` `(batch, n)` says after how many layers each token of the last pass left.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        assert spec.early_exit is not None
        self.exits = frozenset(spec.early_exit.layers)
        self.measure: Measure = "margin"
        self.threshold = 0.0
        self.depths: Tensor | None = None

    def run(self, x: Tensor, tokens: Tokens, cache: Cache | None) -> Tensor:
        """The layers, each for the tokens that are still there."""
        known = tokens.is_new_real
        active = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        active = active if known is None else known
        self.depths = torch.full(x.shape[:2], len(self.layers), device=x.device)
        if self.training or self.threshold == 0:
            return super().run(x, tokens, cache)
        for i, block in enumerate(self.layers):
            caches = None if cache is None else cache.layers[i]
            if not bool(active.any()):
                if caches is not None:
                    fill(block, x, tokens, caches)
                continue
            before = x
            x = torch.where(active[..., None], passed(block, x, tokens, caches), x)
            if i + 1 in self.exits:
                leaving = active & (self.uncertainty(x, before) < self.threshold)
                self.depths = self.depths.masked_fill(leaving, i + 1)
                active = active & ~leaving
        return x

    def uncertainty(self, x: Tensor, before: Tensor) -> Tensor:
        """How unsettled `x` `(batch, n, d_model)` is, `(batch, n)`, 0 to 1.

        `before` is the state one layer earlier.
        """
        if self.measure == "similarity":
            return (1 - functional.cosine_similarity(x.float(), before.float(), dim=-1)) / 2
        log_p = self.logits(x).float().log_softmax(dim=-1)
        if self.measure == "entropy":
            largest = torch.log(torch.tensor(float(log_p.shape[-1])))
            return -(log_p.exp() * log_p).sum(dim=-1) / largest
        first, second = log_p.topk(2, dim=-1).values.exp().unbind(dim=-1)
        return 1 - (first - second)

    def exit_logits(self, input_ids: Tensor) -> list[Tensor]:
        """Logits after each exit and after the last layer, for training all of them."""
        tokens = tokens_of(input_ids, past=0, attention_mask=None)
        tokens.relative_bias = self.relative_bias
        x, found = self.embed(input_ids, tokens), []
        for i, block in enumerate(self.layers):
            x = block(x, tokens)
            if i + 1 in self.exits or i + 1 == len(self.layers):
                found.append(self.logits(x))
        return found


def fill(block: torch.nn.Module, x: Tensor, tokens: Tokens, caches: list[Any]) -> None:
    """What `block` remembers of tokens that left with `x`; what it would answer is not needed."""
    if type(block) is Block and not isinstance(block.ffn, Mixer):
        block.mix(x if block.mixer_norm is None else block.mixer_norm(x), tokens, caches)
    else:
        passed(block, x, tokens, caches)


def exit_loss(logits: list[Tensor], targets: Tensor, depths: list[int]) -> Tensor:
    """Cross-entropy of every exit, weighted by its depth; equation 5.

    Args:
        logits: one `(batch, n, vocab_size)` an exit.
        targets: `(batch, n)`.
        depths: layers before each exit.
    """
    losses = [functional.cross_entropy(each.flatten(0, 1), targets.flatten()) for each in logits]
    weighted = torch.stack([loss * d for loss, d in zip(losses, depths, strict=True)])
    return weighted.sum() / sum(depths)
