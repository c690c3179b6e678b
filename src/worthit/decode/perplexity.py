"""How surprised a model is by text: the loss of each token given those before it.

Perplexity is exp of the mean loss (Jelinek et al. 1977). Every row of ids is one context: its first
token has nothing before it and is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from worthit.nn.decoder import Decoder

# Tokens at once: their logits over a vocabulary of 100k take 200 MB.
CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Of a text; `nll` is the mean loss in nats and `stderr` its standard error over rows."""

    nll: float
    n_tokens: int
    stderr: float | None = None

    @property
    def value(self) -> float:
        """The perplexity."""
        return math.exp(self.nll)


def losses(
    model: Decoder,
    ids: Tensor,
    *,
    chunk: int = CHUNK,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """-log p of every token but the first of each row, in nats, `(rows, n - 1)`, fp32.

    Rows go through the model one by one, in pieces of `chunk` tokens over a cache.

    Args:
        ids: `(rows, n)`.
        on_progress: called with how many rows are done, of how many.
    """
    rows = []
    with torch.inference_mode():
        for done, row in enumerate(ids.to(model.device), 1):
            cache = model.new_cache()
            parts: list[Tensor] = []
            for start in range(0, len(row) - 1, chunk):
                piece = row[start : min(start + chunk, len(row) - 1)]
                if model.outgrows(cache, len(piece)):
                    # LongRoPE turns otherwise from here on: all of the row in one pass.
                    parts, cache = [], model.new_cache()
                    piece = row[:-1]
                logits = model(piece[None], cache=cache)[0].float()
                wanted = row[cache.length - len(piece) + 1 : cache.length + 1]
                parts.append(functional.cross_entropy(logits, wanted, reduction="none"))
                if len(piece) == len(row) - 1:
                    break
            rows.append(torch.cat(parts))
            if on_progress is not None:
                on_progress(done, len(ids))
    return torch.stack(rows)


def perplexity(
    model: Decoder, ids: Tensor, *, on_progress: Callable[[int, int], None] | None = None
) -> Perplexity:
    """The perplexity of `model` on `ids` `(rows, n)`; see `losses`."""
    found = losses(model, ids, on_progress=on_progress)
    means = found.mean(1)
    stderr = float(means.std() / len(means) ** 0.5) if len(means) > 1 else None
    return Perplexity(nll=float(means.mean()), n_tokens=found.numel(), stderr=stderr)
