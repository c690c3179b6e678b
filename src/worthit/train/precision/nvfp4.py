"""NVFP4: E2M1 in blocks of 16 with an E4M3 scale each, and one fp32 scale for the tensor.

NVIDIA 2025, "Pretraining Large Language Models with NVFP4", arXiv:2509.25149, appendix A:

    t = max |X| / (6 * 448)                            one a tensor, fp32
    s_b = e4m3((max |X_b| / 6) / t)                    one a block
    X_i ~ e2m1(X_i / (s_b t)) s_b t

| paper | here |
|---|---|
| global decode scale t | `tensor_scale` |
| local decode scale s_b | `block_scales`, numbers of E4M3 |
| blocks of 16, along the summed axis | `BLOCK` |

A scale that follows the block's largest value clips little and wastes no top binade, which is
what it gains over MXFP4's power of two. Of the recipe around the format, stochastic rounding of
gradients is here (`apply_precision`); square blocks for weights, Hadamard transforms and layers
that are kept wide are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worthit.train.precision.floats import E2M1, E4M3, decode, encode, round_, round_to
from worthit.train.precision.mx import blocked, packed, unblocked, unpacked

BLOCK = 16


def quantize(x: Tensor, *, axis: int = -1, is_stochastic: bool = False) -> Tensor:
    """`x` as NVFP4 blocks along `axis` hold it: same shape and type, fewer values.

    An infinity or NaN makes everything NaN, as the tensor's scale is lost.
    """
    blocks = blocked(x.detach().float(), axis, BLOCK)
    t = tensor_scale(blocks)
    scales = t * block_scales(blocks, t, axis)
    rounded = round_(_elements(blocks, scales), E2M1, is_stochastic=is_stochastic).mul_(scales)
    return unblocked(rounded, x.shape[axis], axis).to(x.dtype)


def tensor_scale(x: Tensor) -> Tensor:
    """t: one number, NaN where `x` is not finite."""
    largest = x.abs().amax()
    return torch.where(largest.isfinite(), largest / (E2M1.largest * E4M3.largest), torch.nan)


def block_scales(blocks: Tensor, t: Tensor, axis: int) -> Tensor:
    """s_b of `blocked(x, axis)`, in place of the elements."""
    axis = axis % (blocks.ndim - 1)
    wanted = blocks.abs().amax(dim=axis + 1, keepdim=True) / E2M1.largest
    return round_to(torch.where(t == 0, 0.0, wanted / t), E4M3)


@dataclass(frozen=True)
class Packed:
    """NVFP4 as bytes.

    Attributes:
        codes: `(..., blocks, 8)` uint8, two elements a byte, the first in the lower half.
        scales: `(..., blocks)` uint8, E4M3.
        tensor_scale: fp32, one number.
        length: of the packed axis, which was the last.
    """

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor
    length: int

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return int(self.codes.nbytes + self.scales.nbytes + self.tensor_scale.nbytes)

    def unpack(self) -> Tensor:
        """The values, `(..., length)` in fp32."""
        scales = self.tensor_scale * decode(self.scales, E4M3)[..., None]
        values = decode(unpacked(self.codes, E2M1.bits), E2M1) * scales
        return unblocked(values, self.length, -1)


def pack(x: Tensor) -> Packed:
    """`x` `(..., length)` as bytes; `pack(x).unpack()` is `quantize(x)`."""
    blocks = blocked(x.detach().float(), -1, BLOCK)
    t = tensor_scale(blocks)
    local = block_scales(blocks, t, -1)
    elements = round_(_elements(blocks, t * local), E2M1).nan_to_num(nan=0.0)
    codes = packed(encode(elements, E2M1), E2M1.bits)
    return Packed(codes, encode(local[..., 0], E4M3), t, x.shape[-1])


def _elements(blocks: Tensor, scales: Tensor) -> Tensor:
    """Blocks in units of their scales; of a block whose scale is zero, zeros."""
    return blocks / torch.where(scales == 0, torch.inf, scales)
