"""Stored matrices as PyTorch's packed products on a CPU read them: the fast form, for inference.

| format | product | exact |
|---|---|---|
| int4-*, q4_1 | `aten._weight_int4pack_mm_for_cpu` | yes: the same codes, scales and zeros |
| int8 | `torch._weight_int8pack_mm` | yes |
| int8-g32 | the same, after rounding to one scale a row | no: half a step of the row's scale |
| ternary | the 4-bit product, which is faster than the 8-bit one | yes |
| fp8 | none on a CPU: widened once, to the model's own type | yes |

"Exact" is about the numbers that are multiplied: sums are in fp32 and rounded to bf16 at the end,
as in the slow form. Both products take bf16 inputs. Neither depends on how many rows there are, so
that a token's output is the same bits alone and in a batch, up to `WIDEN_FROM`; from there on the
matrix is widened for one ordinary bf16 product, which is faster.

Each kernel is tried on numbers that are known before it is trusted. What the 8-bit product does not
check itself is checked here: it reads past the end of rows that are no multiple of 16, and it ends
the process where inputs start at no multiple of 32 bytes, or codes at none of 16.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.quant.grid import CENTRE, GRIDS, Grid
from worthit.nn.quant.linear import (
    INT8_MAX,
    Int8Inputs,
    Stored,
    StoredLinear,
    StoredStack,
    rounded,
)

# Rows from which widening to bf16 and an ordinary product take less time than the packed product;
# on one core of a Zen 5, a matrix of 1536 x 576: see docs/quantize.md.
WIDEN_FROM = {4: 96, 8: 32}
# Of a head's logits, the greatest, which are multiplied in fp32.
N_EXACT = 64
# And from here on where a wide copy of the matrix is kept: `optimize(model, has_wide_copies=True)`.
COPY_FROM = 16
# What the products ask for.
INT4_ROWS, INT4_GROUPS = 16, (256, 128, 64, 32)
INT8_COLUMNS = 16
# Where PyTorch itself puts what it allocates; what is mapped from a file may start anywhere.
ALIGNMENT = 64


class Int8Linear(nn.Module):
    """`(..., in)` to `(..., out)` by int8 codes with one scale a row."""

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("codes", aligned(codes), persistent=False)
        self.register_buffer("scales", scales.flatten(), persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.wide_copy: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """One row or many, in bf16."""
        rows = x.reshape(-1, x.shape[-1])
        if self.wide_copy is not None and rows.shape[0] >= COPY_FROM:
            z: Tensor = self.wide_copy(x)
            return z
        if rows.shape[0] < WIDEN_FROM[8]:
            y: Tensor = torch._weight_int8pack_mm(aligned(rows), self.codes, self.scales)
        else:
            # The scales after the product: fewer numbers to multiply.
            y = functional.linear(rows, self.codes.to(rows.dtype)) * self.scales
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], y.shape[-1])


class Int8Head(Int8Linear):
    """An output head by int8 codes whose greatest logits are exact, and all of them in fp32.

    The product rounds to bf16, which leaves steps of 1/8 between logits of 16 to 32: what is most
    likely would be decided by it. So the few rows that can be chosen are multiplied once more.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logits, in fp32."""
        y = super().forward(x).float()
        rows = x.reshape(-1, x.shape[-1])
        n = min(N_EXACT, y.shape[-1])
        if rows.shape[0] >= WIDEN_FROM[8]:
            return y  # a text's losses, not a choice
        flat = y.view(-1, y.shape[-1])
        top = flat.topk(n).indices
        exact = (self.codes[top].float() @ rows.float()[:, :, None])[..., 0]
        exact = exact * self.scales.float()[top]
        if self.bias is not None:
            exact = exact + self.bias.float()[top]
        return flat.scatter(-1, top, exact).view_as(y)


class Int4Linear(nn.Module):
    """`(..., in)` to `(..., out)` by 4-bit codes with a scale and a zero a group.

    Args:
        codes: unpacked, `(out, in)`, 0 to 15.
        scales, zeros: `(out, groups)`; a zero is the value of code 8.
        inputs: see `StoredLinear`.
    """

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor,
        bias: Tensor | None = None,
        *,
        inputs: Int8Inputs | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.group = self.in_features // scales.shape[-1]
        self.inputs = inputs
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        self.register_buffer("packed", packed, persistent=False)
        both = torch.stack([scales, zeros.to(scales.dtype)], dim=-1).transpose(0, 1)
        self.register_buffer("scales_and_zeros", both.contiguous(), persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.block = _rows_of_block(self.out_features)
        self.wide_copy: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """One row or many, in bf16."""
        rows = x.reshape(-1, x.shape[-1])
        if self.wide_copy is not None and rows.shape[0] >= COPY_FROM:
            z: Tensor = self.wide_copy(x)
            return z
        scale = None
        if self.inputs is not None:
            wide, scale = self.inputs(rows)
            rows = wide.to(rows.dtype)  # whole numbers below 256: exact in bf16
        if rows.shape[0] < WIDEN_FROM[4] or self.block is None:
            y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
                rows.contiguous(), self.packed, self.group, self.scales_and_zeros
            )
        else:
            y = rows @ self.wide(self.block).to(rows.dtype)
        y = y if scale is None else (y.float() * scale).to(x.dtype)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], y.shape[-1])

    def wide(self, block: int) -> Tensor:
        """The matrix, transposed, `(in, out)`, in bf16, from blocks of so many rows."""
        codes = spread(self.packed, self.out_features, block)
        wide = codes.reshape(-1, self.group, self.out_features).to(torch.bfloat16)
        scales, zeros = self.scales_and_zeros[:, None].unbind(-1)
        wide = wide.sub_(CENTRE).mul_(scales).add_(zeros)
        return wide.view(self.in_features, self.out_features)


class FastStack(nn.Module):
    """Experts' matrices in their fast form, one module each."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def __getitem__(self, index: int) -> nn.Module:
        return self.parts[index]

    def unbind(self) -> FastStack:
        """As `StoredStack.unbind`."""
        return self


def aligned(x: Tensor) -> Tensor:
    """`x`, contiguous and where the 8-bit product may read it; a copy where it was not."""
    x = x.contiguous()
    return x if x.data_ptr() % ALIGNMENT == 0 else x.clone()


# --- which form a matrix can take ----------------------------------------------------------------


def fast(linear: StoredLinear, *, is_head: bool = False) -> nn.Module | None:
    """The fast form of `linear`; None where no kernel here takes it."""
    grid, kind = linear.grid, Int8Head if is_head else Int8Linear
    if linear.scales.dtype != torch.bfloat16 or linear.codes.device.type != "cpu":
        return None
    if grid.kind == "int" and grid.bits == 8:
        codes, scales = by_rows(linear)
        return kind(codes, scales, linear.bias) if _takes_int8(codes) else None
    if grid.kind == "float":
        return None
    group = grid.group or next((g for g in INT4_GROUPS if linear.in_features % g == 0), 0)
    if linear.out_features % INT4_ROWS or not (group and can_multiply_int4(group)):
        return None
    codes, scales, zeros = linear.grid.unpack(linear.codes), linear.scales, linear.zeros
    if grid.kind == "ternary":
        codes = (codes + CENTRE).to(torch.uint8)
        scales = scales.expand(-1, linear.in_features // group)
    zeros = torch.zeros_like(scales) if zeros is None else zeros
    return Int4Linear(codes, scales, zeros, linear.bias, inputs=linear.inputs)


def fast_stack(stack: StoredStack) -> FastStack | None:
    """The fast form of experts' matrices; None where no kernel here takes them."""
    parts = []
    for index in range(stack.n):
        codes, scales, zeros = stack.parts(index)
        part = fast(StoredLinear(stack.grid, codes, scales, zeros))
        if part is None:
            return None
        parts.append(part)
    return FastStack(parts)


def fast_table(table: Stored) -> Int8Head | None:
    """The product with an int8 table, whose codes it shares; None where there is no such kernel."""
    table.codes = aligned(table.codes)
    is_int8 = table.grid.kind == "int" and table.grid.bits == 8
    if not is_int8 or table.scales.dtype != torch.bfloat16 or table.codes.device.type != "cpu":
        return None
    codes, scales = by_rows(table)
    return Int8Head(codes, scales) if _takes_int8(codes) else None


def by_rows(stored: Stored) -> tuple[Tensor, Tensor]:
    """Int8 codes with one scale a row: its own, or those of its groups rounded once more."""
    if stored.grid.group is None:
        return stored.codes, stored.scales
    codes, scales, _ = rounded(GRIDS["int8"], stored.wide(), stored.scales.dtype)
    return codes, scales


def _takes_int8(codes: Tensor) -> bool:
    return codes.shape[1] % INT8_COLUMNS == 0 and can_multiply_int8()


@cache
def can_multiply_int8() -> bool:
    """Whether this build and this CPU multiply by int8 rows, and rightly."""
    codes = (torch.arange(32 * 48).view(32, 48) % 255 - INT8_MAX).to(torch.int8)
    scales, x = torch.full((32,), 0.5).bfloat16(), _known_inputs(48)
    try:
        y = torch._weight_int8pack_mm(x, codes, scales)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return _is_near(y, x.float() @ (codes.float() * 0.5).T)


@cache
def can_multiply_int4(group: int) -> bool:
    """Whether this build and this CPU multiply by 4-bit groups of that size, and rightly."""
    grid = Grid(name="int4", bits=4, group=group, has_zeros=True)
    codes, scales, zeros = _known_int4(32, 2 * group, group)
    x = _known_inputs(2 * group)
    try:
        y = Int4Linear(codes, scales, zeros)(x)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    wide = grid.decode(codes.unflatten(-1, (2, group)), scales[..., None], zeros[..., None])
    return _is_near(y, x.float() @ wide.flatten(-2).T)


def spread(packed: Tensor, out_features: int, rows: int) -> Tensor:
    """Codes `(in, out)` of what PyTorch packed by blocks of `rows` rows of a matrix.

    A block holds, column after column, the first half of its rows in the low four bits and the
    second half in the high ones. What is left at the end is a smaller block, of neighbours.
    """
    flat = packed.flatten()
    in_features = 2 * flat.numel() // out_features
    whole = out_features // rows * rows
    parts = []
    for start, end, size in ((0, whole, rows), (whole, out_features, out_features - whole)):
        if end > start:
            held = flat[start * in_features // 2 : end * in_features // 2]
            blocks = held.view(-1, in_features, size // 2)
            low, high = blocks & 15, blocks >> 4
            if size == rows:
                codes = torch.cat([low, high], dim=-1)
            else:
                codes = torch.stack([low, high], dim=-1).flatten(-2)
            parts.append(codes.transpose(0, 1).reshape(in_features, -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


@cache
def _rows_of_block(out_features: int) -> int | None:
    """How many rows of a matrix make one block of a packing; None where it is another packing.

    PyTorch says nothing of it and chooses by the CPU.
    """
    codes = _known_int4(out_features, 32, 32)[0]
    try:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    if packed.dtype == torch.uint8 and packed.numel() * 2 == codes.numel():
        for rows in (64, 32, 16):
            if torch.equal(spread(packed, out_features, rows).T, codes):
                return rows
    return None


def _known_int4(out: int, columns: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    n = torch.arange(out * columns).view(out, columns)
    codes = (n * 7 % 16).to(torch.uint8) ^ (n // columns % 16).to(torch.uint8)
    scales = (torch.arange(out * (columns // group)).view(out, -1) % 5 + 1) / 16
    return codes, scales.bfloat16(), (scales - 0.125).bfloat16()


def _known_inputs(columns: int) -> Tensor:
    return (torch.arange(3 * columns).view(3, columns) % 13 - 6).bfloat16()


def _is_near(y: Tensor, known: Tensor) -> bool:
    # bf16 has eight bits: half a step of the greatest, and as much for the order of a sum.
    return bool(((y.float() - known).abs() <= 2.0**-8 * known.abs().max()).all())
