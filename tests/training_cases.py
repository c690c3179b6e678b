"""A tiny task and tiny models for the tests of training: addition modulo a prime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from worthit.spec.model import Attention, FeedForward, Layer, ModelSpec, MoE, Norm, Position
from worthit.train.batch import IGNORE, Batch


class Addition:
    """`a b =` and then a + b modulo `p`; every fifth pair is held out."""

    def __init__(self, p: int = 7) -> None:
        self.name = "addition"
        self.p, self.vocab_size, self.seq_len = p, p + 1, 3
        a, b = torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij")
        rows = torch.stack([a.flatten(), b.flatten(), torch.full((p * p,), p)], dim=1)
        targets = torch.full_like(rows, IGNORE)
        targets[:, 2] = (rows[:, 0] + rows[:, 1]) % p
        # Some rows also have something to learn in the middle, so that their counts differ.
        targets[::3, 1] = p
        is_held = torch.arange(p * p) % 5 == 4
        self.train = Batch(rows[~is_held], targets[~is_held])
        self.held = Batch(rows[is_held], targets[is_held])

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        chosen = torch.randint(len(self.train.input_ids), (size,), generator=generator)
        return Batch(self.train.input_ids[chosen], self.train.targets[chosen])

    def held_out(self, split: str = "test") -> Iterator[Batch]:
        half = len(self.held.input_ids) // 2
        rows = slice(0, half) if split == "validation" else slice(half, None)
        yield Batch(self.held.input_ids[rows], self.held.targets[rows])


NORM = Norm(kind="layernorm", eps=1e-5, has_bias=True)


def layer(**changes: Any) -> Layer:
    """A layer of 16 channels: attention, then a feed-forward."""
    fields: dict[str, Any] = {
        # No key bias: scores do not see one, so its gradient is noise that Adam makes large.
        "mixers": (Attention(n_heads=2, n_kv_heads=2, head_dim=8, has_out_bias=True),),
        "ffn": FeedForward(d_ff=32, is_gated=False, activation="gelu", has_bias=True),
        "norm": NORM,
    }
    return Layer(**{**fields, **changes})


def tiny(ffn: FeedForward | MoE | None = None, **changes: Any) -> ModelSpec:
    """One layer of 16 channels over the symbols of `Addition`."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "d_model": 16,
        "vocab_size": 8,
        "context_len": 8,
        "n_positions": 8,
        "position": Position(kind="learned"),
        "norm": NORM,
        "layers": (layer() if ffn is None else layer(ffn=ffn),),
    }
    return ModelSpec(**{**fields, **changes})
