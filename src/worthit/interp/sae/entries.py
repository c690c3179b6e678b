"""Pre-activations of a batch, written down in full or at the few places that count.

A sparse autoencoder multiplies by its encoder once, (batch, d) by (d, width). All that follows
concerns the latents that are on: of 4096 a hundred. Where they are few, `Few` keeps their
coordinates, and decoding, its gradients and the encoder's are products with sparse matrices, exact
and some forty times smaller. Where they are many (the beginning of training with a penalty), `All`
is the plain dense computation. A loss is written once, for either:

    e = encoded.where(encoded.h > 0)
    f = e.h.relu()                         # off outside of the mask, which `All` does not apply
    penalty = e.weighted(f, sae.norms)     # the sum of values times a number a latent
    y = e.decode(f, sae.decoder)           # (batch, d), without bias
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

# From this share of latents on, the sparse products are the slower ones (measured, one thread).
FEW = 1 / 8

with warnings.catch_warnings():
    # Said once a process, by the first compressed matrix of it: that this layout is a beta.
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    torch.eye(1).to_sparse_csr()


class All:
    """All latents of all rows, `n_on` of them inside of the mask; the others must be made 0."""

    def __init__(self, h: Tensor, n_on: int) -> None:
        self.h, self.n_on = h, n_on

    def weighted(self, values: Tensor, per_latent: Tensor) -> Tensor:
        """The sum of values times a number a latent `(width,)`."""
        return values.sum(0) @ per_latent

    def decode(self, values: Tensor, decoder: Tensor) -> Tensor:
        """`(batch, d)` of values that are 0 where they are off."""
        return values @ decoder

    def fired(self, values: Tensor) -> Tensor:
        """How many rows have each latent on, `(width,)`; as in `decode`."""
        return (values > 0).sum(0)


class Few:
    """The latents at `rows`, `cols` `(n,)`, in the order of rows."""

    def __init__(self, h: Tensor, rows: Tensor, cols: Tensor, shape: torch.Size) -> None:
        self.h, self.rows, self.cols, self.shape = h, rows, cols, shape
        self.places = Places(rows, cols, shape)
        self.n_on = len(rows)

    def of(self, per_latent: Tensor) -> Tensor:
        """`(width,)` to `(n,)`."""
        return per_latent.index_select(0, self.cols)

    def weighted(self, values: Tensor, per_latent: Tensor) -> Tensor:
        """The sum of values times a number a latent `(width,)`."""
        return values @ self.of(per_latent)

    def decode(self, values: Tensor, decoder: Tensor) -> Tensor:
        """`(batch, d)`."""
        y: Tensor = _Decode.apply(values, decoder, self.places)
        return y

    def fired(self, values: Tensor) -> Tensor:
        """How many rows have each latent on, `(width,)`."""
        return torch.bincount(self.cols[values > 0], minlength=self.shape[1])


Entries = All | Few


class Places:
    """Coordinates as the sparse products want them: by rows, and by columns for the way back."""

    def __init__(self, rows: Tensor, cols: Tensor, shape: torch.Size) -> None:
        self.shape = shape
        self.rows, self.cols = rows, cols
        self.row_ends = _ends(rows, shape[0])
        self._order: Tensor | None = None

    def by_rows(self, values: Tensor) -> Tensor:
        """The sparse matrix `(batch, width)`."""
        return torch.sparse_csr_tensor(
            self.row_ends, self.cols, values, self.shape, check_invariants=False
        )

    def by_cols(self, values: Tensor) -> Tensor:
        """Its transpose, `(width, batch)`."""
        if self._order is None:
            self._order = torch.argsort(self.cols, stable=True)
            self._col_ends = _ends(self.cols, self.shape[1])
            self._rows = self.rows[self._order]
        return torch.sparse_csr_tensor(
            self._col_ends,
            self._rows,
            values[self._order],
            self.shape[::-1],
            check_invariants=False,
        )

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """`left[row] . right[col]` of each place, `(n,)`."""
        pattern = self.by_rows(torch.zeros_like(self.cols, dtype=left.dtype))
        found: Tensor = torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0)
        return found.values()


def where_above(values: Tensor, others: Tensor) -> Tensor:
    """`values` where `others` are above 0, else 0: one pass over both, without a mask."""
    found: Tensor = torch.ops.aten.threshold_backward(values, others, 0.0)
    return found


def summed_at(where: Tensor, rows: Tensor) -> Tensor:
    """The sum of `rows` `(batch, d)` where each latent is marked: `(width, d)`.

    Args:
        where: `(batch, width)`, ones and zeros.
    """
    if float(where.sum()) > FEW * where.numel():
        return where.T @ rows
    at, cols = where.nonzero(as_tuple=True)
    places = Places(at, cols, where.shape)
    return places.by_cols(torch.ones(len(places.cols), dtype=rows.dtype)) @ rows


def _ends(index: Tensor, n: int) -> Tensor:
    ends = index.new_zeros(n + 1)
    torch.cumsum(torch.bincount(index, minlength=n), 0, out=ends[1:])
    return ends


class _Decode(torch.autograd.Function):
    """A sum of a few decoder rows for each row of the batch."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, decoder: Tensor, places: Places) -> Tensor:
        ctx.save_for_backward(values, decoder)
        ctx.places = places
        return places.by_rows(values) @ decoder

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, decoder = ctx.saved_tensors
        wants_values, wants_decoder, _ = ctx.needs_input_grad
        d_values = ctx.places.products(dy, decoder) if wants_values else None
        d_decoder = ctx.places.by_cols(values) @ dy if wants_decoder else None
        return d_values, d_decoder, None


class _Encode(torch.autograd.Function):
    """h = encoder (x - shift) + bias, known already; the way back is what is left to do.

    `x` is data: it gets no gradient, and that of `shift` is one vector, not one for each row.
    """

    @staticmethod
    def forward(
        ctx: Any,
        encoder: Tensor,
        bias: Tensor,
        shift: Tensor | None,
        h: Tensor,
        centred: Tensor,
        places: Places | None,
    ) -> Tensor:
        ctx.save_for_backward(encoder, centred)
        ctx.places, ctx.has_shift = places, shift is not None
        return h.view_as(h) if places is None else h[places.rows, places.cols]

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        encoder, centred = ctx.saved_tensors
        places: Places | None = ctx.places
        if places is None:
            d_encoder, d_bias = dh.T @ centred, dh.sum(0)
        else:
            d_encoder = places.by_cols(dh) @ centred
            d_bias = dh.new_zeros(len(encoder)).index_add_(0, places.cols, dh)
        d_shift = -(d_bias @ encoder) if ctx.has_shift else None
        return d_encoder, d_bias, d_shift, None, None, None


class Encoded:
    """What one product with the encoder gives: `h` `(batch, width)`, without a graph.

    Args:
        x: `(batch, d)`, data.
        encoder: `(width, d)`.
        bias: `(width,)`.
        shift: `(d,)`, taken from `x` before; None for nothing.
    """

    def __init__(self, x: Tensor, encoder: Tensor, bias: Tensor, shift: Tensor | None) -> None:
        self.encoder, self.bias, self.shift = encoder, bias, shift
        with torch.no_grad():
            self.centred = x if shift is None else x - shift
            self.h = torch.addmm(bias, self.centred, encoder.T)

    def where(self, mask: Tensor) -> Entries:
        """The entries of `mask` `(batch, width)`."""
        n_on = int(mask.sum())
        if n_on > FEW * mask.numel():
            return All(self._with_graph(None), n_on)
        rows, cols = mask.nonzero(as_tuple=True)
        return self.at(rows, cols)

    def at(self, rows: Tensor, cols: Tensor) -> Few:
        """The entries at these places, rows in order."""
        few = Few(self.h, rows, cols, self.h.shape)
        few.h = self._with_graph(few.places)
        return few

    def _with_graph(self, places: Places | None) -> Tensor:
        h: Tensor = _Encode.apply(self.encoder, self.bias, self.shift, self.h, self.centred, places)
        return h
