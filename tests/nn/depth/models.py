"""Small decoders for the tests of this folder."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from worthit.nn.decoder import Decoder, build
from worthit.spec.model import Attention, FeedForward, Layer, ModelSpec

D, VOCAB = 32, 64
ATTENTION = Attention(n_heads=4, n_kv_heads=2, head_dim=8, rotary_dim=8)
LAYER = Layer(mixers=(ATTENTION,), ffn=FeedForward(d_ff=48))
KV_ELEMENTS = 2 * ATTENTION.n_kv_heads * ATTENTION.head_dim


def spec_of(*layers: Layer, **fields: object) -> ModelSpec:
    """A model of these layers."""
    spec = ModelSpec(name="m", d_model=D, vocab_size=VOCAB, layers=layers, context_len=256)
    return replace(spec, **fields)  # type: ignore[arg-type]  # fields of ModelSpec


def built(spec: ModelSpec, *, std: float = 0.15, seed: int = 0) -> Decoder:
    """A decoder with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    model = build(spec)
    for name, p in model.named_parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=1.0 if "embedding" in name else std)
    return model.eval()


def some_ids(n: int, batch: int = 2, seed: int = 1) -> Tensor:
    """Token ids `(batch, n)`."""
    return torch.randint(0, VOCAB, (batch, n), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def in_pieces(model: Decoder, ids: Tensor, *lengths: int, mask: Tensor | None = None) -> Tensor:
    """Logits of `ids` by passes of `lengths`, then single tokens, through one cache."""
    cache, done, out = model.new_cache(), 0, []
    sizes = [*lengths, *[1] * (ids.shape[1] - sum(lengths))]
    for size in sizes:
        end = done + size
        part = None if mask is None else mask[:, :end]
        out.append(model(ids[:, done:end], cache=cache, attention_mask=part))
        done = end
    return torch.cat(out, dim=1)


def left_padded(ids: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Row 0 of `ids` as it is, the others with `n` tokens of padding in place of their last ones.

    Returns the ids and their mask; row i > 0 holds `ids[i, :-n]` on the right.
    """
    padded, mask = ids.clone(), torch.ones_like(ids)
    padded[1:] = torch.cat([torch.zeros_like(ids[1:, :n]), ids[1:, :-n]], dim=1)
    mask[1:, :n] = 0
    return padded, mask
