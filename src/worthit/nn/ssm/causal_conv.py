"""The short causal convolution in front of a state-space or linear-attention layer.

    y_t = b + sum_{i < d_conv} w_i x_{t - d_conv + 1 + i}        each channel by itself

What a decoding step needs of the past is the last inputs; `d_conv` of them are kept, as the
reference implementations do.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        if past is not None:
            x = torch.cat([past.to(x.dtype), x], dim=1)
        if cache is not None:
            cache["conv"] = functional.pad(x, (0, 0, max(0, k - x.shape[1]), 0))[
                :, -k:
            ].contiguous()
        # (d_conv, width), each tap in one piece: strided ones multiply several times slower.
        weights = self.weight.to(x.dtype).T.contiguous()
        if n == 1:
            y = (x[:, -k:] * weights[-x.shape[1] :]).sum(dim=1, keepdim=True)
            return y if self.bias is None else y + self.bias.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = _ShiftedSum.apply(x, weights, bias)
        return y[:, -n:] if past is not None else y


class _ShiftedSum(torch.autograd.Function):
    """y_t = b + sum_i w_i x_{t-k+1+i}, zeros before the first: faster here than a convolution.

    `x` is `(batch, n, width)`, `w` `(k, width)`, `b` `(width,)` or None. Block by block, so that
    what one tap has read and written is near when the next one does; gradients go slice by slice
    into one tensor, where a chain of slices would fill as many with zeros.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, w, b)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        for block in _blocks(x.shape[1]):
            if b is None:
                torch.mul(x[:, block], w[-1], out=y[:, block])
            else:
                torch.addcmul(b, x[:, block], w[-1], out=y[:, block])
            for now, before, i in _taps(block, w.shape[0]):
                y[:, now].addcmul_(x[:, before], w[i])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, w, b = ctx.saved_tensors
        gx = torch.empty_like(x, memory_format=torch.contiguous_format)
        gw = torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32))
        for block in _blocks(x.shape[1]):
            torch.mul(g[:, block], w[-1], out=gx[:, block])
            gw[-1] += (g[:, block] * x[:, block]).sum(dim=(0, 1), dtype=gw.dtype)
            # Taps reach back into blocks that are written already.
            for now, before, i in _taps(block, w.shape[0]):
                gx[:, before].addcmul_(g[:, now], w[i])
                gw[i] += (g[:, now] * x[:, before]).sum(dim=(0, 1), dtype=gw.dtype)
        gb = None if b is None else g.sum(dim=(0, 1), dtype=gw.dtype).to(b.dtype)
        return gx, gw.to(w.dtype), gb


def _blocks(n: int) -> Iterator[slice]:
    return (slice(i, min(i + BLOCK, n)) for i in range(0, n, BLOCK))


def _taps(block: slice, k: int) -> Iterator[tuple[slice, slice, int]]:
    """For each tap but the last: outputs of the block, the inputs that it reads, its number."""
    for i in range(k - 1):
        back = k - 1 - i
        first = max(block.start, back)
        if first < block.stop:
            yield slice(first, block.stop), slice(first - back, block.stop - back), i
