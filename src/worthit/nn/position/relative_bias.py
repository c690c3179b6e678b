"""Relative position bias: each head adds a learned number to a score, by how far apart two are.

Raffel et al. 2019, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer", arXiv:1910.10683, section 2.1 ("T5"):

    score(i, j) = q_i k_j + b_h[bucket(i - j)]

The first half of the buckets are the distances 0, 1, 2, ... and the others grow with the logarithm
up to `MAX_DISTANCE`, beyond which all share the last one.

| paper | here |
|---|---|
| 32 embeddings | `N_BUCKETS` |
| 128 | `MAX_DISTANCE` |
| "shared across all layers" | one table for the model, of its widest attention's heads |

A decoder looks back only: every bucket is for a key behind its query. T5 itself does not divide
scores by sqrt(head_dim); its initialisation made up for that. Here the attention's own `scale`
stays, as it does when the bias replaces other positions in a model that divides.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

N_BUCKETS = 32
MAX_DISTANCE = 128


def bucket(distance: Tensor) -> Tensor:
    """The bucket of each distance i - j; keys ahead of their query count as distance 0."""
    exact = N_BUCKETS // 2
    distance = distance.clamp_min(0)
    far = distance.float().clamp_min(exact) / exact
    log = (far.log() / math.log(MAX_DISTANCE / exact) * (N_BUCKETS - exact)).long()
    return torch.where(distance < exact, distance, (exact + log).clamp_max(N_BUCKETS - 1))


class RelativeBias(nn.Module):
    """The table `(N_BUCKETS, n_heads)`; one for all layers."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(N_BUCKETS, n_heads) * 0.02)

    def forward(self, positions: Tensor, key_positions: Tensor) -> Tensor:
        """What to add to scores, `(batch or 1, n_heads, n, keys)`.

        Args:
            positions: of the queries, `(batch or 1, n)`.
            key_positions: `(batch or 1, keys)`.
        """
        distance = positions[:, :, None] - key_positions[:, None, :]
        return nn.functional.embedding(bucket(distance), self.weight).permute(0, 3, 1, 2)
