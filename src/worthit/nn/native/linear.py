"""Matrices as `decoder.cpp` reads them: tiles of 16 outputs, side by side in a register's lanes.

| kind | a tile, from the outside in |
|---|---|
| fp32 | column, output |
| bf16, int8 | pair of columns, output, column of the pair |
| int4 | eight columns, output, parity of the column: a word of its four codes, lowest bits first |

Scales stand by tile, group and output; those of 4-bit codes in one word with their zeros.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from worthit.nn.native.build import library
from worthit.nn.quant.linear import StoredEmbedding, StoredLinear

KINDS = {"fp32": 0, "bf16": 1, "int4": 2, "int8": 3}
LANES, GROUP = 16, 32


class Matrix(ctypes.Structure):
    """The struct of the same name."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("cols", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class NativeLinear(nn.Module):
    """`(..., in)` to `(..., out)` by tiles; a row's bits do not depend on how many rows there are.

    Args:
        kind: of the table above.
        codes: laid out, see `tiles` and `packed`.
        scales: laid out; None where codes are numbers.
    """

    def __init__(
        self,
        kind: str,
        shape: tuple[int, int],
        codes: Tensor,
        scales: Tensor | None = None,
        *,
        group: int = 0,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.out_features, self.in_features = shape
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        own = None if bias is None else bias.detach().float().contiguous()
        self.register_buffer("bias", own, persistent=False)
        self.matrix = Matrix(
            KINDS[kind],
            *shape,
            group,
            codes.data_ptr(),
            None if scales is None else scales.data_ptr(),
            None if own is None else own.data_ptr(),
        )
        found = library()
        assert found is not None
        self._multiply: Any = found.worthit_multiply

    def forward(self, x: Tensor) -> Tensor:
        """One row or many; outputs have the type of `x`, inputs are rounded to the weights' own."""
        rows = x.reshape(-1, x.shape[-1]).float().contiguous()
        y = rows.new_empty(rows.shape[0], self.out_features)
        self._multiply(
            ctypes.byref(self.matrix),
            ctypes.c_void_p(rows.data_ptr()),
            rows.shape[0],
            ctypes.c_void_p(y.data_ptr()),
            torch.get_num_threads(),
        )
        return y.to(x.dtype).view(*x.shape[:-1], y.shape[-1])


def native(linear: nn.Module) -> NativeLinear | None:
    """`linear` by tiles; None where its format or its shape has none."""
    shape = getattr(linear, "shape", None) or tuple(getattr(linear, "weight", torch.empty(0)).shape)
    if len(shape) != 2 or shape[0] % LANES or shape[1] % GROUP or library() is None:
        return None
    bias = getattr(linear, "bias", None)
    if isinstance(linear, StoredLinear | StoredEmbedding):
        return _stored(linear, shape, bias)
    if type(linear) not in (nn.Linear, nn.Embedding):
        return None
    weight = linear.weight.detach()
    if weight.device.type != "cpu":
        return None
    if weight.dtype == torch.float32:
        return NativeLinear("fp32", shape, tiles(weight, 1), bias=bias)
    if weight.dtype == torch.bfloat16:
        return NativeLinear("bf16", shape, tiles(weight, 2), bias=bias)
    return None


def _stored(
    linear: StoredLinear | StoredEmbedding, shape: tuple[int, int], bias: Tensor | None
) -> NativeLinear | None:
    grid = linear.grid
    group = grid.group or shape[1]
    if grid.kind != "int" or group % GROUP or linear.scales.dtype != torch.bfloat16:
        return None
    if getattr(linear, "inputs", None) is not None or linear.codes.device.type != "cpu":
        return None
    scales, zeros = linear.scales.reshape(shape[0], -1), linear.zeros
    if grid.bits == 8 and zeros is None:
        codes = tiles(linear.codes, 2)
        return NativeLinear("int8", shape, codes, tiles(scales, 1), group=group, bias=bias)
    if grid.bits == 4:
        zeros = torch.zeros_like(scales) if zeros is None else zeros.reshape(scales.shape)
        both = torch.stack([scales, zeros.to(scales.dtype)], dim=-1)  # (out, groups, 2)
        by_tile = both.view(-1, LANES, *both.shape[1:]).transpose(1, 2).contiguous()
        codes = packed(grid.unpack(linear.codes))
        return NativeLinear("int4", shape, codes, by_tile, group=group, bias=bias)
    return None


def tiles(matrix: Tensor, at_once: int) -> Tensor:
    """`(out, in)` by tiles, `at_once` columns of an output next to each other."""
    cut = matrix.reshape(-1, LANES, matrix.shape[1] // at_once, at_once)
    return cut.transpose(1, 2).contiguous()


def packed(codes: Tensor) -> Tensor:
    """4-bit codes `(out, in)`, 0 to 15, as words of four."""
    cut = codes.reshape(-1, LANES, codes.shape[1] // 8, 4, 2).permute(0, 2, 1, 4, 3).int()
    shifts = torch.tensor([0, 4, 8, 12], dtype=torch.int32)
    # Of 16 bits, whose sign is the highest code's.
    return (cut << shifts).sum(-1, dtype=torch.int32).to(torch.int16).contiguous()


__all__ = ["GROUP", "LANES", "Matrix", "NativeLinear", "native"]
