"""Experts that read a narrower stream (Nemotron-H's `moe_latent_size`): what they read and do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from worthit.cost.ledger import Pass
from worthit.cost.ops import ffn_ops
from worthit.cost.params import ffn_params
from worthit.spec.model import FeedForward, MoE

D_MODEL, D_LATENT, D_FF = 512, 128, 256
EXPERT = FeedForward(d_ff=D_FF, is_gated=False)
MIXTURE = MoE(n_experts=16, n_experts_per_token=4, expert=EXPERT, d_latent=D_LATENT)


def weights_read(ffn: MoE) -> float:
    p = Pass(phase="decode", batch=1e6, new=1.0, past=1.0)
    return sum(float(np.ravel(op.weights)[0]) for op in ffn_ops(ffn, D_MODEL, p))


def test_everything_that_is_stored_is_read_by_a_large_batch() -> None:
    # By hand: the router, two projections of the stream, two matrices an expert; bf16.
    stored = D_MODEL * 16 + 2 * D_MODEL * D_LATENT + 16 * 2 * D_LATENT * D_FF
    assert ffn_params(MIXTURE, D_MODEL).total == stored
    assert weights_read(MIXTURE) == 2 * stored


def test_a_latent_as_wide_as_the_stream_only_adds_its_projections() -> None:
    plain, wide = replace(MIXTURE, d_latent=None), replace(MIXTURE, d_latent=D_MODEL)
    assert weights_read(wide) - weights_read(plain) == 2 * 2 * D_MODEL * D_MODEL
