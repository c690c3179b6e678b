"""The short causal convolution in front of a state-space or linear-attention layer.

    y_t = b + sum_{i < d_conv} w_i x_{t - d_conv + 1 + i}        each channel by itself

What a decoding step needs of the past is the last inputs; `d_conv` of them are kept, as the
reference implementations do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from worthit.nn.cache import StateCache

# Tokens of which products are formed at a time: they stay in the cache until they are summed.
BLOCK = 256


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
        y = _ShiftedSum.apply(x[:, 1:], weights.T)
        return y if self.bias is None else y + self.bias.to(x.dtype)


class _ShiftedSum(torch.autograd.Function):
    """y_t = sum_i w_i x_{t+i}: in this layout faster on a CPU than the general convolution.

    `x` is `(batch, n + d_conv - 1, width)`, `w` `(d_conv, width)`. Gradients go slice by slice into
    one tensor, where a chain of slices would fill as many with zeros.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        n = x.shape[1] - w.shape[0] + 1
        y = x[:, :n] * w[0]
        for i in range(1, w.shape[0]):
            y.addcmul_(x[:, i : n + i], w[i])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        n, gx = g.shape[1], torch.zeros_like(x)
        gw = torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32))
        for start in range(0, n, BLOCK):
            part = g[:, start : start + BLOCK]
            for i in range(w.shape[0]):
                here = slice(start + i, start + i + part.shape[1])
                gx[:, here].addcmul_(part, w[i])
                gw[i] += (part * x[:, here]).sum(dim=(0, 1), dtype=gw.dtype)
        return gx, gw.to(w.dtype)
