"""BitNet b1.58: weights of -1, 0 and 1 times one scale, activations of 8 bits a token.

Ma et al. 2024, "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits",
arXiv:2402.17764, section 2, equations 1 to 3, on the layer of Wang et al. 2023, "BitNet: Scaling
1-bit Transformers for Large Language Models", arXiv:2310.11453, section 2:

    W~ = clip(round(W / mean |W|), -1, 1),                W ~ mean |W| W~
    x~ = clip(round(127 x / max |x|), -128, 127),         x ~ max |x| / 127 x~

| paper | here |
|---|---|
| gamma, mean absolute weight | `weight_scale` |
| x~, with one scale a token | `quantize_activations` |
| SubLN | `sub_norm`: root-mean-square norm without weight, before x is quantized |
| straight-through estimator | gradients pass as if nothing had been rounded |
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

# Zero weights and zero tokens keep a finite scale.
TINY = 1e-5
LEVELS = 127
NORM_EPS = 1e-6


def weight_scale(w: Tensor) -> Tensor:
    """mean |W| of every matrix of `(..., rows, columns)`, `(..., 1, 1)` in fp32."""
    return w.detach().float().abs().mean(dim=(-2, -1), keepdim=True).clamp(min=TINY)


def ternary(w: Tensor) -> Tensor:
    """W~: -1, 0 or 1, in fp32."""
    return (w.detach().float() * (1 / weight_scale(w))).round_().clamp(-1, 1)


def quantize_weights(w: Tensor) -> Tensor:
    """`w` `(..., rows, columns)` as three values of each matrix hold it, in its own type."""
    return _scaled(ternary(w), weight_scale(w)).to(w.dtype)


def quantize_activations(x: Tensor) -> Tensor:
    """`x` `(..., features)` as 8 bits and a scale a token hold it, in its own type."""
    wide = x.detach().float()
    scale = LEVELS / wide.abs().amax(dim=-1, keepdim=True).clamp(min=TINY)
    return (torch.round(wide * scale).clamp(-LEVELS - 1, LEVELS) / scale).to(x.dtype)


def sub_norm(x: Tensor) -> Tensor:
    """`x` `(..., features)` at unit power."""
    return rms_norm(x, x.shape[-1:], eps=NORM_EPS)


def pack(w: Tensor) -> tuple[Tensor, Tensor]:
    """Two bits a weight, four weights a byte along the last axis, and the scale.

    Codes are W~ + 1, the first weight in the lowest bits; a last byte may be padded.
    """
    codes = (ternary(w) + 1).to(torch.uint8)
    codes = torch.nn.functional.pad(codes, (0, -w.shape[-1] % 4))
    shifts = 2 * torch.arange(4, device=w.device)
    packed = (codes.int().unflatten(-1, (-1, 4)) << shifts).sum(dim=-1).to(torch.uint8)
    return packed, weight_scale(w)


def unpack(packed: Tensor, scale: Tensor, length: int) -> Tensor:
    """What `pack` packed, `(..., length)` in fp32."""
    shifts = 2 * torch.arange(4, device=packed.device)
    codes = ((packed.int()[..., None] >> shifts) & 3).flatten(-2)[..., :length]
    return _scaled((codes - 1).float(), scale)


def _scaled(levels: Tensor, scale: Tensor) -> Tensor:
    """`levels` times `scale`, to the bit as a stored reciprocal gives it."""
    return levels / (1 / scale)
