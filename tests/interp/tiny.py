"""Small models to look into."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from worthit.nn.decoder import Decoder, build
from worthit.spec.model import (
    Attention,
    FeedForward,
    LatentAttention,
    Layer,
    LinearAttention,
    Mamba,
    Mamba2,
    ModelSpec,
    MoE,
)

D, VOCAB = 16, 23
ATTENTION = Attention(n_heads=4, n_kv_heads=2, head_dim=4, rotary_dim=4)
LAYER = Layer(mixers=(ATTENTION,), ffn=FeedForward(d_ff=24))
SSM = Mamba2(n_heads=4, head_dim=8, d_state=4, n_groups=1, d_conv=4)
LINEAR = LinearAttention(kind="retention", n_key_heads=2, n_value_heads=2, key_dim=4, value_dim=8)
ADDITIVE = replace(LINEAR, kind="linear", n_value_heads=4, d_conv=3)
LATENT = LatentAttention(
    n_heads=4, kv_lora_rank=6, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=5
)
MOE = MoE(n_experts=4, n_experts_per_token=2, expert=FeedForward(d_ff=12))

LAYERS = {
    "attention": LAYER,
    "sandwich": replace(LAYER, placement="sandwich"),
    "post": replace(LAYER, placement="post", residual_scale=0.7),
    "parallel": replace(LAYER, is_parallel=True, has_one_norm=True),
    "mamba": Layer(mixers=(Mamba(d_inner=32, d_state=4, d_conv=4, dt_rank=2),), ffn=None),
    "mamba2": replace(LAYER, mixers=(SSM,)),
    "linear": replace(LAYER, mixers=(LINEAR,)),
    "additive": replace(LAYER, mixers=(ADDITIVE,)),
    "latent": replace(LAYER, mixers=(LATENT,)),
    "moe": replace(LAYER, ffn=MOE),
    "both": replace(LAYER, mixers=(ATTENTION, SSM)),
    "looped": replace(LAYER, n_loops=3),
}


def spec_of(*kinds: str, **fields: object) -> ModelSpec:
    """A model of these layers."""
    layers = tuple(LAYERS[kind] for kind in kinds)
    spec = ModelSpec(name="m", d_model=D, vocab_size=VOCAB, layers=layers, context_len=64)
    return replace(spec, **fields)  # type: ignore[arg-type]  # fields of ModelSpec


def model_of(*kinds: str, seed: int = 0, **fields: object) -> Decoder:
    """A decoder with random weights, norms and biases included, in evaluation mode."""
    torch.manual_seed(seed)
    model = build(spec_of(*kinds, **fields)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


def ids_of(batch: int = 2, n: int = 7, seed: int = 1) -> Tensor:
    """Token ids `(batch, n)`."""
    return torch.randint(VOCAB, (batch, n), generator=torch.Generator().manual_seed(seed))
