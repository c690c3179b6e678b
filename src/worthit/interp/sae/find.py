"""Which latents a text is about: on in it more than in text at large."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from worthit.interp.hooks import activations
from worthit.interp.sae.base import SparseAutoencoder
from worthit.nn.decoder import Decoder


@dataclass(frozen=True)
class Found:
    """A latent, how strong and how often it is in the text, and how often elsewhere."""

    feature: int
    mean: float
    share: float
    density: float | None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@torch.no_grad()
def features_in(
    model: Decoder,
    sae: SparseAutoencoder,
    at: str,
    ids: Tensor,
    *,
    density: Tensor | None = None,
    n: int = 12,
    skip: int = 1,
) -> list[Found]:
    """The `n` latents whose mean over `ids` `(length,)` stands out most.

    Args:
        density: `(width,)`, how often each is on elsewhere; those on in a tenth of all text are
            left out, and rare ones count more.
    """
    latents = sae.encode(activations(model, ids[None], at)[at][0, skip:].float())
    mean, share = latents.mean(0), (latents > 0).float().mean(0)
    score = mean.clone()
    if density is not None:
        score = torch.where(density < 0.1, mean * (share / (density + 1e-3)).clamp(max=50.0), 0.0)
    best = score.topk(min(n, len(score)))
    return [
        Found(i, float(mean[i]), float(share[i]), None if density is None else float(density[i]))
        for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        if value > 0
    ]
