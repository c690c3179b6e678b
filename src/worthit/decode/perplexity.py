"""How surprised a model is by text: the loss of each token given those before it.

Perplexity is exp of the mean loss (Jelinek et al. 1977). Every row of ids is one context: its first
token has nothing before it and is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from worthit.nn.position.rope import changes_with_length
from worthit.nn.tokens import tokens_of

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

    Rows go through the model one by one, in pieces of `chunk` tokens over a cache, or whole where
    the rotation depends on the length (dynamic NTK, LongRoPE).

    Args:
        ids: `(rows, n)`.
        on_progress: called with how many rows are done, of how many.
    """
    rows = []
    with torch.inference_mode():
        for done, row in enumerate(ids.to(model.device), 1):
            logits_of = _in_one_pass if changes_with_length(model.spec.position) else _in_pieces
            parts = []
            for logits, start in logits_of(model, row[:-1], chunk):
                wanted = row[start + 1 : start + 1 + len(logits)]
                parts.append(functional.cross_entropy(logits.float(), wanted, reduction="none"))
            rows.append(torch.cat(parts))
            if on_progress is not None:
                on_progress(done, len(ids))
    return torch.stack(rows)


def _in_pieces(model: Decoder, row: Tensor, chunk: int) -> Iterator[tuple[Tensor, int]]:
    """Logits of `chunk` tokens after another over a cache, and where each piece starts."""
    cache = model.new_cache()
    for start in range(0, len(row), chunk):
        yield model(row[None, start : start + chunk], cache=cache)[0], start


def _in_one_pass(model: Decoder, row: Tensor, chunk: int) -> Iterator[tuple[Tensor, int]]:
    """The same where the rotation of all depends on how long the row is: layers see all of it."""
    tokens = tokens_of(row[None], past=0, attention_mask=None)
    tokens.relative_bias, tokens.low_rank = model.relative_bias, model.low_rank
    x = model.run(model.embed(row[None], tokens), tokens, None)
    for start in range(0, len(row), chunk):
        yield model.logits(x[:, start : start + chunk])[0], start


def perplexity(
    model: Decoder, ids: Tensor, *, on_progress: Callable[[int, int], None] | None = None
) -> Perplexity:
    """The perplexity of `model` on `ids` `(rows, n)`; see `losses`."""
    found = losses(model, ids, on_progress=on_progress)
    means = found.mean(1)
    stderr = float(means.std() / len(means) ** 0.5) if len(means) > 1 else None
    return Perplexity(nll=float(means.mean()), n_tokens=found.numel(), stderr=stderr)
