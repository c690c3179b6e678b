"""The same tensor of several checkpoints, read a few rows at a time.

Every method of this package is a function from a `Stack` to the merged rows, in order. Tensors that
are in memory make a stack too, so a merge of a checkpoint on disk and one of two small tensors run
through the same lines, and neither needs more memory than a few rows of each checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from worthit.errors import InputError

# Elements read at once: small enough that what is done with them stays in a core's cache.
PIECE = 1 << 17


class Rows(Protocol):
    """A tensor seen as `(n_rows, n_columns)`, its last axis being the columns."""

    @property
    def n_rows(self) -> int:
        """The product of all axes but the last; 1 for a vector."""
        ...

    @property
    def n_columns(self) -> int:
        """The last axis; 1 for a scalar."""
        ...

    def read(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`, in the numbers of the arithmetic; not to be changed."""
        ...


@dataclass(frozen=True)
class InMemory:
    """Rows of a tensor that is already there; fp64 stays, every other format becomes fp32."""

    tensor: Tensor

    @property
    def n_rows(self) -> int:
        """See `Rows`."""
        return self.tensor.shape[:-1].numel() if self.tensor.ndim > 1 else 1

    @property
    def n_columns(self) -> int:
        """See `Rows`."""
        return self.tensor.shape[-1] if self.tensor.ndim else 1

    def read(self, start: int, stop: int) -> Tensor:
        """See `Rows`."""
        rows = self.tensor.reshape(self.n_rows, self.n_columns)[start:stop]
        return rows if rows.dtype == torch.float64 else rows.float()


@dataclass(frozen=True)
class Stack:
    """One tensor of each checkpoint, and of their base where the method asks for one.

    Attributes:
        models: in the order of the recipe, all of one shape.
        base: what the models were fine-tuned from.
        name: of the tensor; with a seed it decides which entries a random method drops.
        piece: elements of one tensor read at once.
    """

    models: tuple[Rows, ...]
    base: Rows | None = None
    name: str = ""
    piece: int = PIECE

    @property
    def n_rows(self) -> int:
        """Rows of each tensor."""
        return self.models[0].n_rows

    @property
    def n_columns(self) -> int:
        """Columns of each tensor."""
        return self.models[0].n_columns

    @property
    def numel(self) -> int:
        """Elements of each tensor."""
        return self.n_rows * self.n_columns

    def spans(self) -> Iterator[tuple[int, int]]:
        """Which rows are read together."""
        step = max(self.piece // max(self.n_columns, 1), 1)
        for start in range(0, self.n_rows, step):
            yield start, min(start + step, self.n_rows)

    def pieces(self) -> Iterator[tuple[Tensor, ...]]:
        """The same rows of every model, the base left out."""
        for start, stop in self.spans():
            yield tuple(model.read(start, stop) for model in self.models)

    def task_vectors(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """The same rows of the base, and of every model as its difference from the base."""
        assert self.base is not None
        for start, stop in self.spans():
            base = self.base.read(start, stop)
            yield base, [model.read(start, stop) - base for model in self.models]

    def task_vector(self, index: int) -> Iterator[Tensor]:
        """The difference of one model from the base, rows by rows."""
        assert self.base is not None
        for start, stop in self.spans():
            yield self.models[index].read(start, stop) - self.base.read(start, stop)


Merge = Callable[..., Iterator[Tensor]]


def in_memory(
    merge: Merge,
    tensors: Sequence[Tensor],
    base: Tensor | None = None,
    *,
    name: str = "",
    piece: int = PIECE,
    **parameters: Any,
) -> Tensor:
    """What `merge` makes of tensors that are in memory, in their common dtype.

    Raises:
        InputError: no tensors, or tensors of different shapes.
    """
    everything = list(tensors) if base is None else [base, *tensors]
    if not tensors:
        raise InputError("merging needs at least one tensor, got none")
    shapes = {tuple(t.shape) for t in everything}
    if len(shapes) > 1:
        shown = " and ".join(str(list(shape)) for shape in sorted(shapes))
        raise InputError(f"merged tensors must have one shape, got {shown}")
    dtype = everything[0].dtype
    for tensor in everything[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    stack = Stack(
        models=tuple(InMemory(t.to(wide)) for t in tensors),
        base=None if base is None else InMemory(base.to(wide)),
        name=name,
        piece=piece,
    )
    pieces = list(merge(stack, **parameters))
    merged = torch.cat(pieces) if pieces else torch.empty(0)
    return merged.reshape(everything[0].shape).to(dtype)
