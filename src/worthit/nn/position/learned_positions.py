"""Learned positions: one trained vector a position, added to the embedding.

Gehring et al. 2017, "Convolutional Sequence to Sequence Learning", arXiv:1705.03122, section 3.1;
as in GPT-2 and OPT:

    e_i = w_i + p_i

| paper | here |
|---|---|
| w, embedded input elements | the decoder's `embedding` |
| p, position embeddings | `weight`, `(n_positions, d_model)`; row i + `offset` |

There is no vector beyond the table: a longer sequence is an error.
"""

from __future__ import annotations

from torch import Tensor, nn

from worthit.errors import InputError


class LearnedPositions(nn.Module):
    """A table of `n_positions` rows; position 0 reads row `offset` (OPT starts at 2)."""

    def __init__(self, n_positions: int, d_model: int, *, offset: int = 0) -> None:
        super().__init__()
        self.offset = offset
        self.weight = nn.Parameter(
            nn.init.normal_(nn.Embedding(n_positions, d_model).weight, std=0.02)
        )

    def forward(self, positions: Tensor) -> Tensor:
        """Rows for `positions` `(batch, n)`: `(batch, n, d_model)`."""
        rows = positions + self.offset
        last = int(rows.max())
        if last >= self.weight.shape[0]:
            known, last = self.weight.shape[0] - self.offset, last - self.offset
            raise InputError(
                f"the model has learned positions for {known} tokens, got position {last}; "
                "shorten the input"
            )
        return nn.functional.embedding(rows, self.weight)
