"""Small models of every kind of layer, shared by the tests of optimizers and number formats."""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.model import (
    S4,
    Attention,
    ChannelMix,
    FeedForward,
    LatentAttention,
    Layer,
    LinearAttention,
    Mamba,
    Mamba2,
    ModelSpec,
    MoE,
    Rwkv,
)

D = 16
PLAIN = Attention(n_heads=4, n_kv_heads=2, head_dim=8)
LATENT = LatentAttention(
    n_heads=4, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6, q_lora_rank=10
)
LINEAR = LinearAttention(
    kind="linear", n_key_heads=2, n_value_heads=4, key_dim=6, value_dim=8, d_conv=4, chunk=8
)
FFN = FeedForward(d_ff=24)
MIXTURE = MoE(
    n_experts=4,
    n_experts_per_token=2,
    expert=FeedForward(d_ff=12),
    shared=FeedForward(d_ff=20),
    n_shared_experts=1,
    has_shared_gate=True,
)
LAYERS = {
    "grouped": Layer(mixers=(replace(PLAIN, has_qkv_bias=True),), ffn=FFN),
    "gated attention": Layer(mixers=(replace(PLAIN, has_output_gate=True),), ffn=FFN),
    "plain feed-forward": Layer(mixers=(PLAIN,), ffn=replace(FFN, is_gated=False)),
    "latent": Layer(mixers=(LATENT,), ffn=FFN),
    "latent, no query rank": Layer(mixers=(replace(LATENT, q_lora_rank=None),), ffn=None),
    **{
        kind: Layer(mixers=(replace(LINEAR, kind=kind, has_output_gate=True),), ffn=FFN)
        for kind in ("linear", "retention", "gated", "delta", "gated-delta")
    },
    "mamba": Layer(mixers=(Mamba(d_inner=32, d_state=8, d_conv=4, dt_rank=3),), ffn=None),
    "mamba2": Layer(
        mixers=(Mamba2(n_heads=4, head_dim=8, d_state=8, n_groups=2, d_conv=4),), ffn=None
    ),
    "rwkv": Layer(mixers=(Rwkv(d_attention=24),), ffn=ChannelMix(d_ff=40)),
    "rwkv5": Layer(mixers=(Rwkv(d_attention=D, version=5, head_dim=4),), ffn=ChannelMix(d_ff=40)),
    "rwkv6": Layer(
        mixers=(Rwkv(d_attention=D, version=6, head_dim=4, rank=6, mix_rank=5),),
        ffn=ChannelMix(d_ff=40),
    ),
    "rwkv7": Layer(
        mixers=(Rwkv(d_attention=D, version=7, head_dim=4, rank=6),),
        ffn=ChannelMix(d_ff=40, has_receptance=False),
    ),
    "native sparse": Layer(mixers=(replace(PLAIN, sparse_keys=32, sparse_near=8),), ffn=FFN),
    "performer": Layer(mixers=(replace(PLAIN, n_features=12),), ffn=FFN),
    "s4": Layer(mixers=(S4(d_state=8),), ffn=None),
    "experts": Layer(mixers=(PLAIN,), ffn=MIXTURE),
    "experts in a latent": Layer(mixers=(PLAIN,), ffn=replace(MIXTURE, d_latent=8)),
    "depth": Layer(mixers=(PLAIN,), ffn=FFN, token_fraction=0.5),
    "loops": Layer(mixers=(PLAIN,), ffn=FFN, n_loops=2),
}


def spec_of(layer: Layer, **changes: object) -> ModelSpec:
    made = ModelSpec(name="m", d_model=D, vocab_size=40, layers=(layer,) * 2, context_len=64)
    return replace(made, **changes)
