"""Quantized safetensors as the tensors that they stand for: some models are published in no other.

- MXFP4 (OCP Microscaling Formats v1.0, 2023, section 5): 32 numbers of 4 bits (E2M1), two a byte
  with the first in the low half, share one power of two (E8M0, biased by 127). gpt-oss stores its
  experts so, as `NAME_blocks` `(experts, out, groups, 16)` and `NAME_scales` for `(experts, in,
  out)`.
- fp8 by blocks (DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", arXiv:2412.19437, section 3.3.2):
  E4M3 numbers, of which 128 x 128 share the factor in `NAME_scale_inv`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from worthit.spec.checkpoint import Tensor as Stored

READ = ("mxfp4", "fp8-block")
FP8_BLOCK = 128
MXFP4_GROUP = 32
E8M0_BIAS = 127
# The sixteen values of E2M1: sign, two bits of exponent, one of mantissa.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_BLOCKS, _SCALES, _SCALE_INV = "_blocks", "_scales", "_scale_inv"

Read = Callable[[str], Tensor]


def unpack_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """`(experts, out, groups, 16)` bytes and `(experts, out, groups)` scales to numbers.

    Returns `(experts, in, out)` in bf16, in which every one of them is exact.
    """
    values = torch.tensor(E2M1, device=blocks.device)
    experts = []
    # One expert at a time: what comes in between is many times the size of what comes out.
    for packed, scale in zip(blocks, scales, strict=True):
        codes = torch.stack([packed & 0x0F, packed >> 4], dim=-1).flatten(-2)
        numbers = torch.ldexp(values[codes.int()], scale.int()[..., None] - E8M0_BIAS)
        experts.append(numbers.flatten(-2).bfloat16())
    return torch.stack(experts).transpose(1, 2)


def scale_blocks(weight: Tensor, scale: Tensor) -> Tensor:
    """`(out, in)` fp8 numbers times their block's factor, in fp32."""
    rows, columns = weight.shape
    wide = scale.float().repeat_interleave(FP8_BLOCK, 0)[:rows]
    return weight.float() * wide.repeat_interleave(FP8_BLOCK, 1)[:, :columns]


def as_plain(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors that files stand for: packed ones with their scales as one plain tensor each."""
    packed = [n for n in stored if n.endswith(_BLOCKS) and _scales_of(n) in stored]
    scaled = [n for n, t in stored.items() if t.dtype == "F8_E4M3" and n + _SCALE_INV in stored]
    scales = {_scales_of(name) for name in packed} | {name + _SCALE_INV for name in scaled}
    plain = {name: tensor for name, tensor in stored.items() if name not in scales}
    for name in packed:
        tensor, whole = plain.pop(name), name.removesuffix(_BLOCKS)
        experts, out, groups, _ = tensor.shape
        shape = (experts, groups * MXFP4_GROUP, out)
        plain[whole] = replace(tensor, name=whole, dtype="BF16", shape=shape)
    for name in scaled:
        plain[name] = replace(plain[name], dtype="BF16")
    return plain


def _scales_of(blocks: str) -> str:
    return blocks.removesuffix(_BLOCKS) + _SCALES


def read_plain(name: str, stored: Mapping[str, Stored], read: Read) -> Tensor:
    """One tensor of `as_plain(stored)`."""
    if name not in stored:
        return unpack_mxfp4(read(name + _BLOCKS), read(_scales_of(name + _BLOCKS)))
    if stored[name].dtype == "F8_E4M3" and name + _SCALE_INV in stored:
        return scale_blocks(read(name), read(name + _SCALE_INV))
    return read(name)
