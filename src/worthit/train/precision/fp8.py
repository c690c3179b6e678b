"""FP8: one scale for a whole tensor, or for each row of a product, so that 8 bits hold the values.

Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv:2209.05433, sections 3 and 4:
E4M3 for weights and activations, E5M2 for gradients, which need range more than precision.

    s = largest / max |X|,    Q(X) = round(s X),    X ~ Q(X) / s

| paper | here |
|---|---|
| scaling factor s | `scale_for`, of the tensor as it is now ("current" scaling) |
| Q(X) / s | `quantize(x, ...)`: values that 8 bits and a scale hold, in the type of `x` |

A row runs along the summed axis of a product, so that its scale can be taken out of the sum. The
authors' delayed scaling (a scale of earlier steps) saves hardware a pass over memory and has no
other purpose; it is left out.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from worthit.train.precision.floats import E4M3, Float, round_

Scaling = Literal["tensor", "row"]
# A tensor of zeros gets a finite scale.
TINY = 1e-12


def scale_for(x: Tensor, format: Float, *, axis: int | None = None) -> Tensor:
    """What `x` is multiplied by to fill `format`: one number, or one for each row along `axis`."""
    size = x.detach().abs()
    largest = size.amax() if axis is None else size.amax(dim=axis, keepdim=True)
    return format.largest / largest.float().clamp(min=TINY)


def quantize(
    x: Tensor,
    format: Float = E4M3,
    *,
    scaling: Scaling = "tensor",
    axis: int = -1,
    is_stochastic: bool = False,
) -> Tensor:
    """`x` as `format` holds it with its scale: same shape and type, fewer values.

    Args:
        x: any shape; an infinity or NaN makes its tensor or row NaN.
        format: of the values.
        scaling: one scale, or one for each row along `axis`.
        axis: the summed axis of the product that `x` goes into.
        is_stochastic: see `round_to`.
    """
    wide = x.detach().float()
    scale = scale_for(wide, format, axis=None if scaling == "tensor" else axis)
    # An infinite value has left no scale: 0 would turn everything beside it into zeros.
    scale = torch.where(scale > 0, scale, torch.nan)
    return round_(wide * scale, format, is_stochastic=is_stochastic).div_(scale).to(x.dtype)
