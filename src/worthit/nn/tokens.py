"""What every layer is told about the tokens of one pass: where they stand and which are real.

Sequences of a batch are padded on the left, so that slot i of every row is i tokens from the end of
the batch and a row's own positions start after its padding. Slots count from the first token that
any pass of this cache has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from worthit.nn.position.relative_bias import RelativeBias

T = TypeVar("T")


@dataclass
class Tokens:
    """The tokens of one pass.

    Attributes:
        n: tokens of each row in this pass.
        past: tokens of each row in earlier passes.
        positions: `(batch, n)`, each token's place in its own sequence; padding has 0.
        is_real: `(batch, past + n)` booleans, False on padding; None when nothing is padded.
        relative_bias: the model's table of biases by distance, which its layers share.
        low_rank: `(context_len, rank)`, what projects keys along the sequence, shared likewise.
        slot_positions: `(batch, past + n)`, the place of every slot where tokens were left out
            between them; None where they follow each other.
        among: `(n, m)` booleans, which of the last `m` slots, this pass's tokens the last of them,
            each token may look at, where they are no chain but a tree; `(batch, 1, n, m)` where
            every row has its own; None for all up to itself.
        parts: the sequences whose tokens stand side by side in the one row of a ragged pass, each
            described by itself; None in a batch of rows (see `worthit.nn.ragged`).
        start: where a part begins in its pass.
        is_exact: whether every token of a ragged pass is to be attended by itself, so that its
            numbers are those that it has in any other pass.
    """

    n: int
    past: int
    positions: Tensor
    is_real: Tensor | None = None
    relative_bias: RelativeBias | None = None
    low_rank: Tensor | None = None
    slot_positions: Tensor | None = None
    among: Tensor | None = None
    parts: list[Tokens] | None = None
    start: int = 0
    is_exact: bool = False
    _shared: dict[Hashable, object] = field(default_factory=dict, repr=False)

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made once a pass: layers of one kind share masks and rotations."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]  # type: ignore[return-value]  # one key, one type

    @property
    def is_new_real(self) -> Tensor | None:
        """`(batch, n)` booleans of this pass's tokens; None when nothing is padded."""
        return None if self.is_real is None else self.is_real[:, self.past :]

    @property
    def n_single(self) -> int:
        """Of a ragged pass, how many sequences at its beginning bring a single token."""
        parts = self.parts or ()
        return next((i for i, part in enumerate(parts) if part.n > 1), len(parts))

    def key_positions(self) -> Tensor:
        """`(batch or 1, past + n)`: the place of every slot in its own sequence."""
        if self.slot_positions is not None:
            return self.slot_positions
        if self.is_real is None:
            return torch.arange(self.past + self.n, device=self.positions.device)[None]
        return (self.is_real.long().cumsum(dim=-1) - 1).clamp_min(0)

    def without_padding(self, x: Tensor) -> Tensor:
        """`x` `(batch, n, ...)` with zeros on padding: what recurrences and convolutions need."""
        real = self.is_new_real
        return x if real is None else x * real[:, :, None].to(x.dtype)


def tokens_of(input_ids: Tensor, *, past: int, attention_mask: Tensor | None) -> Tokens:
    """Describe `input_ids` `(batch, n)` after `past` tokens.

    Args:
        attention_mask: `(batch, past + n)`, 0 on left padding; None when nothing is padded.
    """
    n = input_ids.shape[1]
    if attention_mask is None or bool(attention_mask.all()):
        positions = torch.arange(past, past + n, device=input_ids.device)
        return Tokens(n=n, past=past, positions=positions[None].expand(input_ids.shape[0], n))
    is_real = attention_mask.bool()
    positions = (is_real.long().cumsum(dim=-1) - 1).clamp_min(0)[:, past:]
    return Tokens(n=n, past=past, positions=positions, is_real=is_real)
