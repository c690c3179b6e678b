"""Small mixtures for the tests of this folder."""

from __future__ import annotations

import torch
from torch import nn

from worthit.nn.moe.topk_moe import TopKMoE, build_moe
from worthit.spec.model import FeedForward, Layer, ModelSpec, MoE

D, E, K, D_FF = 32, 8, 2, 16
EXPERT = FeedForward(d_ff=D_FF)
MIXTURE = MoE(n_experts=E, n_experts_per_token=K, expert=EXPERT)


def model_of(moe: MoE) -> ModelSpec:
    """A model of one layer that has nothing but `moe`."""
    return ModelSpec(
        name="m", d_model=D, vocab_size=8, layers=(Layer(mixers=(), ffn=moe),), context_len=64
    )


def built(moe: MoE, seed: int = 0) -> TopKMoE:
    """The module of `moe` with weights large enough to choose clearly, in evaluation mode."""
    torch.manual_seed(seed)
    module = build_moe(moe, model_of(moe))
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    if module.router.selection_bias is not None:
        nn.init.normal_(module.router.selection_bias, std=0.3)
    return module.eval()
