"""Root-mean-square norm: scale to unit power, subtract nothing.

Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", arXiv:1910.07467, equation 4:

    y = x / RMS(x) * g,    RMS(x) = sqrt(mean(x^2) + eps)

| paper | here |
|---|---|
| a | `x` |
| g | `weight`, or 1 + `weight` with a unit offset (Gemma) |
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Normalise the last dimension, of `width` channels, in fp32.

    Args:
        has_unit_offset: store the weight as its distance from 1, so that weight decay pulls
            towards the identity; the product is then taken in fp32.
        has_bias: add a vector at the end (the authors' code offers it; no checkpoint uses it).
    """

    def __init__(
        self,
        width: int,
        *,
        eps: float,
        has_weight: bool = True,
        has_unit_offset: bool = False,
        has_bias: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.eps, self.has_unit_offset = width, eps, has_unit_offset
        start = torch.zeros(width) if has_unit_offset else torch.ones(width)
        self.weight = nn.Parameter(start) if has_weight else None
        self.bias = nn.Parameter(torch.zeros(width)) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` `(..., width)` at unit power, times the weight, plus the bias."""
        y = self._weighed(x)
        return y if self.bias is None else y + self.bias

    def _weighed(self, x: Tensor) -> Tensor:
        wide = x.float()
        if self.weight is not None and self.has_unit_offset:
            scaled = nn.functional.rms_norm(wide, (self.width,), eps=self.eps)
            return (scaled * (1 + self.weight.float())).to(x.dtype)
        y = nn.functional.rms_norm(wide, (self.width,), eps=self.eps).to(x.dtype)
        return y if self.weight is None else y * self.weight
