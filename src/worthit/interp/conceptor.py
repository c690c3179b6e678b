"""Conceptors: soft projections onto where a set of activations lies, with and, or, not.

Jaeger 2014, "Controlling Recurrent Neural Networks by Conceptors", arXiv:1403.3369, equations 7 and
definitions 3 and 4; for language models Postmus & Abreu 2024, "Steering Large Language Models using
Conceptors", arXiv:2410.16314, section 3. With R the correlation of activations,

    C = R (R + a^-2 I)^-1       singular values s / (s + a^-2): near 1 where activations are
    NOT C = I - C               C AND B = (C^-1 + B^-1 - I)^-1       C OR B = NOT (NOT C AND NOT B)

| paper | here |
|---|---|
| aperture a | `aperture`: how much of the weaker directions is let through |
| R = X^T X / n | of `x (n, d)`, around the origin or around `centre` |
| quota | `quota`: mean singular value, the share of the space that is taken |

Where C or B has singular values 0, AND is the limit that Jaeger's equation 31 gives: the inverse
within the intersection of their ranges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worthit.errors import InputError

# Singular values below this count as 0 where an inverse is taken.
ZERO = 1e-10


@dataclass(frozen=True)
class Conceptor:
    """A symmetric matrix `(d, d)` with singular values in [0, 1], around `centre` `(d,)`."""

    matrix: Tensor
    centre: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """`(..., d)`, projected softly around the centre."""
        matrix, centre = self.matrix.to(x), self.centre.to(x)
        return centre + (x - centre) @ matrix

    @property
    def quota(self) -> float:
        """The share of the space that it lets through."""
        return float(self.matrix.diagonal().mean())

    def __invert__(self) -> Conceptor:
        """NOT: lets through what this one does not."""
        eye = torch.eye(len(self.matrix), dtype=self.matrix.dtype)
        return replace(self, matrix=eye - self.matrix)

    def __and__(self, other: Conceptor) -> Conceptor:
        """AND: lets through what both do."""
        self._must_fit(other)
        return Conceptor(_both(self.matrix, other.matrix), (self.centre + other.centre) / 2)

    def __or__(self, other: Conceptor) -> Conceptor:
        """OR: lets through what one of them does."""
        both = ~self & ~other
        return ~both

    def scaled(self, factor: float) -> Conceptor:
        """With the aperture `factor` times as wide (Jaeger, definition 2)."""
        if factor <= 0:
            raise InputError(f"factor: must be positive, got {factor:g}")
        eye = torch.eye(len(self.matrix), dtype=self.matrix.dtype)
        matrix = self.matrix @ torch.linalg.inv(self.matrix + (eye - self.matrix) / factor**2)
        return replace(self, matrix=_symmetric(matrix))

    def _must_fit(self, other: Conceptor) -> None:
        if self.matrix.shape != other.matrix.shape:
            raise InputError(
                f"conceptors of one width combine, got {len(self.matrix)} and {len(other.matrix)}"
            )


def conceptor(x: Tensor, *, aperture: float, centre: Tensor | None = None) -> Conceptor:
    """Where the rows of `x` `(n, d)` lie.

    Args:
        aperture: wide lets everything through that occurs at all, narrow only what is strong.
        centre: what is taken from every row first; None for the origin, as in Jaeger.

    Raises:
        InputError: no rows, or an aperture that is not positive.
    """
    if aperture <= 0:
        raise InputError(f"aperture: must be positive, got {aperture:g}")
    if x.ndim != 2 or not len(x):
        raise InputError(f"x: must be (n, d) with n at least 1, got {list(x.shape)}")
    x = x.detach().double()
    middle = x.new_zeros(x.shape[1]) if centre is None else centre.double()
    centred = x - middle
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    values = values.clamp_min(0)
    soft = values / (values + aperture**-2)
    return Conceptor((vectors * soft) @ vectors.T, middle)


def _both(c: Tensor, b: Tensor) -> Tensor:
    """C AND B, by the formula that also holds where they are singular (Jaeger, equation 31)."""
    basis = _shared_range(c, b)
    if not basis.shape[1]:
        return torch.zeros_like(c)
    eye = torch.eye(len(c), dtype=c.dtype)
    middle = torch.linalg.pinv(c, hermitian=True, rtol=ZERO)
    middle = middle + torch.linalg.pinv(b, hermitian=True, rtol=ZERO) - eye
    inner = torch.linalg.inv(basis.T @ middle @ basis)
    return _symmetric(basis @ inner @ basis.T)


def _shared_range(c: Tensor, b: Tensor) -> Tensor:
    """An orthonormal basis of what both ranges hold: the null space of the sum of projections."""
    outside = torch.zeros_like(c)
    for matrix in (c, b):
        values, vectors = torch.linalg.eigh(matrix)
        null = vectors[:, values <= ZERO]
        outside = outside + null @ null.T
    values, vectors = torch.linalg.eigh(outside)
    return vectors[:, values <= 1e-8]


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2
