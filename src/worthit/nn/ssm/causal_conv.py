"""The short causal convolution in front of a state-space or linear-attention layer.

    y_t = b + sum_{i < d_conv} w_i x_{t - d_conv + 1 + i}        each channel by itself

What a decoding step needs of the past is the last inputs; `d_conv` of them are kept, as the
reference implementations do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.cache import StateCache


class CausalConv(nn.Module):
    """A convolution over `d_conv` tokens of each of `width` channels."""

    def __init__(self, width: int, d_conv: int, *, has_bias: bool) -> None:
        super().__init__()
        self.width, self.d_conv = width, d_conv
        bound = d_conv**-0.5
        self.weight = nn.Parameter(torch.empty(width, d_conv).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound)) if has_bias else None

    def forward(self, x: Tensor, cache: StateCache | None = None) -> Tensor:
        """`(batch, n, width)` to the same shape; continues the inputs that `cache` holds."""
        n, k = x.shape[1], self.d_conv
        past = None if cache is None else cache.get("conv")
        if past is None:
            x = functional.pad(x, (0, 0, k, 0))
        else:
            x = torch.cat([past.to(x.dtype), x], dim=1)
        if cache is not None:
            cache["conv"] = x[:, -k:].contiguous()
        weights = self.weight.to(x.dtype)
        if n == 1:
            y = (x[:, 1:] * weights.T).sum(dim=1, keepdim=True)
            return y if self.bias is None else y + self.bias.to(x.dtype)
        # A sum of shifted products: in this layout faster on a CPU than the general convolution.
        y = x[:, 1 : n + 1] * weights[:, 0]
        if self.bias is not None:
            y = y + self.bias.to(x.dtype)
        for i in range(1, k):
            y = torch.addcmul(y, x[:, i + 1 : n + i + 1], weights[:, i])
        return y
