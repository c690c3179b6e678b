"""Linear maps and embeddings whose weights are stored as codes: the slow, plain form.

Codes are unpacked and scaled in fp32 at every call, multiplied in fp32, and rounded once: that is
what the format means, and what the fast forms in `worthit.nn.quant.kernels` are checked against. It
is also the form that is saved. Scales and zeros have the type that the model computes in, and
follow when it changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.quant.grid import Grid

INT8_MAX = 127
# Of the norm before a product, and below every row's greatest number: BitNet's own.
NORM_EPS, TINY_ROW = 1e-6, 1e-5


@dataclass(frozen=True)
class Int8Inputs:
    """What a BitNet does to each row before a product: unit power if so trained, then 8 bits.

    Ma et al. 2024, arXiv:2402.17764, section 2 (absmax a token); SubLN without a weight.
    """

    has_sub_norm: bool = False

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows as whole numbers from -128 to 127, in fp32, and what products are multiplied by."""
        x = x.float()
        if self.has_sub_norm:
            x = functional.rms_norm(x, x.shape[-1:], eps=NORM_EPS)
        scale = INT8_MAX / x.abs().amax(-1, keepdim=True).clamp_min(TINY_ROW)
        return (x * scale).round().clamp(-INT8_MAX - 1, INT8_MAX), 1 / scale


class Stored(nn.Module):
    """A matrix `(out, in)` as packed codes with scales, and zeros where its format has them."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __init__(self, grid: Grid, codes: Tensor, scales: Tensor, zeros: Tensor | None) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix that is stored."""
        rows, columns = self.codes.shape
        return rows, columns * 8 // self.grid.bits

    @property
    def weight(self) -> Tensor:
        """The matrix, made anew at every call, in the type that the model computes in."""
        return self.wide().to(self.scales.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that codes, scales and zeros take."""
        held = [self.codes, self.scales, self.zeros]
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    def wide(self) -> Tensor:
        """The matrix in fp32: exactly what codes, scales and zeros stand for."""
        return widened(self.grid, self.codes, self.scales, self.zeros)


def widened(grid: Grid, codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """Packed codes as the numbers that they stand for, in fp32."""
    grouped = grid.groups(grid.unpack(codes))
    each = None if zeros is None else zeros[..., None]
    return grid.decode(grouped, scales[..., None], each).flatten(-2)


def rounded(
    grid: Grid, weight: Tensor, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Packed codes, scales and zeros of `(out, in)` weights, each number to its nearest code."""
    scales, zeros = grid.fit(weight, dtype)
    return encoded(grid, weight, scales, zeros), scales, zeros


def encoded(grid: Grid, weight: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """Packed codes of `(out, in)` weights on given scales."""
    each = None if zeros is None else zeros[..., None]
    codes = grid.encode(grid.groups(weight.float()), scales[..., None], each)
    return grid.pack(codes.flatten(-2))


class StoredLinear(Stored):
    """`nn.Linear` with a stored matrix.

    Args:
        inputs: what becomes of the input first, in a BitNet.
    """

    def __init__(
        self,
        grid: Grid,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        inputs: Int8Inputs | None = None,
    ) -> None:
        super().__init__(grid, codes, scales, zeros)
        self.out_features, self.in_features = self.shape
        self.register_buffer("bias", bias)
        self.inputs = inputs

    @classmethod
    def of(cls, linear: nn.Linear, grid: Grid) -> Self:
        """`linear` with every weight rounded to the nearest code."""
        weight = linear.weight.detach()
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(grid, *rounded(grid, weight, weight.dtype), bias)

    @classmethod
    def side_by_side(cls, parts: Sequence[Self]) -> Self:
        """One product for several on the same input: their rows one below another."""
        first = parts[0]
        has_zeros, has_bias = first.zeros is not None, first.bias is not None
        assert all(part.grid == first.grid for part in parts)
        assert all(part.inputs == first.inputs for part in parts)
        return cls(
            first.grid,
            torch.cat([part.codes for part in parts]),
            torch.cat([part.scales for part in parts]),
            torch.cat([part.zeros for part in parts]) if has_zeros else None,
            torch.cat([part.bias for part in parts]) if has_bias else None,
            inputs=first.inputs,
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)`."""
        bias = None if self.bias is None else self.bias.float()
        if self.inputs is not None:
            codes, scale = self.inputs(x)
            y = functional.linear(codes, self.wide()) * scale
            return (y if bias is None else y + bias).to(x.dtype)
        return functional.linear(x.float(), self.wide(), bias).to(x.dtype)

    def extra_repr(self) -> str:
        """What `print` says."""
        return f"in={self.in_features}, out={self.out_features}, format={self.grid.name}"


def dense(stored: StoredLinear) -> nn.Module:
    """`stored` widened once, in its own type; as it is where it rounds its inputs."""
    if stored.inputs is not None:
        return stored
    with torch.device("meta"):
        linear = nn.Linear(stored.in_features, stored.out_features, bias=stored.bias is not None)
    linear.weight = nn.Parameter(stored.weight, requires_grad=False)
    if stored.bias is not None:
        linear.bias = nn.Parameter(stored.bias, requires_grad=False)
    return linear


class StoredEmbedding(Stored):
    """`nn.Embedding` with a stored table; as a tied head it is multiplied as a matrix."""

    @classmethod
    def of(cls, embedding: nn.Embedding, grid: Grid) -> Self:
        """`embedding` with every number rounded to the nearest code."""
        weight = embedding.weight.detach()
        return cls(grid, *rounded(grid, weight, weight.dtype))

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of the table, `(..., in)`."""
        zeros = None if self.zeros is None else self.zeros[ids]
        rows = widened(self.grid, self.codes[ids], self.scales[ids], zeros)
        return rows.to(self.scales.dtype)

    def as_head(self, x: Tensor) -> Tensor:
        """`(..., in)` times the table: `(..., rows)`."""
        return functional.linear(x.float(), self.wide()).to(x.dtype)


class StoredStack(Stored):
    """Matrices of one shape, one an expert, in place of a tensor `(experts, out, in)`.

    Indexing widens one of them; nothing widens all.
    """

    def __init__(
        self, grid: Grid, codes: Tensor, scales: Tensor, zeros: Tensor | None, n: int
    ) -> None:
        super().__init__(grid, codes, scales, zeros)
        self.n = n

    @classmethod
    def of_stack(cls, weight: Tensor, grid: Grid) -> Self:
        """`(experts, out, in)` with every number rounded to the nearest code."""
        parts = [rounded(grid, one, weight.dtype) for one in weight.detach()]
        codes, scales, zeros = zip(*parts, strict=True)
        joined = torch.cat(zeros) if zeros[0] is not None else None
        return cls(grid, torch.cat(codes), torch.cat(scales), joined, len(parts))

    def __getitem__(self, index: int) -> Tensor:
        """The matrix of one expert, `(out, in)`."""
        codes, scales, zeros = self.parts(index)
        return widened(self.grid, codes, scales, zeros).to(self.scales.dtype)

    def parts(self, index: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes, scales and zeros of one expert."""
        zeros = None if self.zeros is None else self._one(self.zeros, index)
        return self._one(self.codes, index), self._one(self.scales, index), zeros

    def _one(self, rows: Tensor, index: int) -> Tensor:
        return rows.unflatten(0, (self.n, -1))[index]

    def unbind(self) -> Self:
        """What `Tensor.unbind` gives, as far as it is read: something to index."""
        return self
