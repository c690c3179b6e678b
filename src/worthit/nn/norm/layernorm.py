"""Layer norm: zero mean and unit variance over the channels of one token.

Ba, Kiros & Hinton 2016, "Layer Normalization", arXiv:1607.06450, equation 4:

    y = (x - mean(x)) / sqrt(var(x) + eps) * g + b

| paper | here |
|---|---|
| mu, sigma over H hidden units | over the last dimension, `(..., d_model)` |
| g, b (gain, bias) | `weight`, `bias` |
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """Normalise the last dimension, of `width` channels, in fp32."""

    def __init__(
        self, width: int, *, eps: float, has_weight: bool = True, has_bias: bool = False
    ) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(width)) if has_weight else None
        self.bias = nn.Parameter(torch.zeros(width)) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` `(..., width)` normalised, times the weight, plus the bias."""
        if x.dtype == torch.float32 and (self.weight is None or self.weight.dtype == x.dtype):
            # The same in one pass over memory.
            y: Tensor = nn.functional.layer_norm(
                x, (self.width,), self.weight, self.bias, eps=self.eps
            )
            return y
        y = nn.functional.layer_norm(x.float(), (self.width,), eps=self.eps)
        if self.weight is not None:
            y = y * self.weight.float()
        if self.bias is not None:
            y = y + self.bias.float()
        return y.to(x.dtype)
