"""Element-wise FLOPs on a state, and transforms, counted as they run."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ONE_EACH = {"add", "sub", "rsub", "mul", "div", "exp", "maximum", "neg"}
TWO_EACH = {"addcmul"}


class CountedFlops(TorchDispatchMode):
    """Counts operations that read or write at least `least` elements: those on the state.

    One FLOP for each number written; a product and a sum for each one that `bmm` and `mm` multiply;
    a sum for each one that is added up. Real transforms of N numbers are 2.5 N log2 N.
    """

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.flops, self.transforms = least, 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        inputs = [a for a in args if isinstance(a, torch.Tensor)]
        largest = max((t.numel() for t in (*inputs, out) if isinstance(t, torch.Tensor)), default=0)
        if name in ("_fft_r2c", "_fft_c2r"):
            real = inputs[0] if name == "_fft_r2c" else out
            n = real.shape[-1]
            self.transforms += 2.5 * real.numel() * math.log2(n)
        if largest < self.least:
            return out
        if name in ONE_EACH:
            self.flops += out.numel()
        elif name in TWO_EACH:
            self.flops += 2 * out.numel()
        elif name == "sum":
            self.flops += inputs[0].numel()
        elif name in ("mm", "bmm"):
            self.flops += 2 * out.numel() * inputs[0].shape[-1]
        return out
