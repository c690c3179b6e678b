"""The next token of many sequences at once, each by its own settings and its own chance.

Rows that share a `Sampling` are filtered together; what is random is one number a token from the
sequence's own generator, so that its tokens depend on nothing else in the step.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worthit.decode import sampling as rows_of
from worthit.decode.engine.request import TokenLogprob
from worthit.decode.sampling import Sampling, adjust, draw, restrict
from worthit.errors import InputError

if TYPE_CHECKING:
    from worthit.decode.engine.sequence import Sequence


class Chance:
    """A sequence's random numbers, and what it has to remember of its own tokens."""

    def __init__(
        self, seed: int, index: int, sampling: Sampling, prompt: Ids[int], vocab_size: int
    ) -> None:
        self._generator = torch.Generator().manual_seed(mixed(seed, index))
        self.was_there: Tensor | None = None
        self.counts: Tensor | None = None
        if sampling.repetition_penalty != 1.0:
            self.was_there = torch.zeros(vocab_size, dtype=torch.bool)
            self.was_there[list(prompt)] = True
        if sampling.presence_penalty or sampling.frequency_penalty:
            self.counts = torch.zeros(vocab_size)

    def next(self) -> float:
        """A number from 0 to below 1."""
        return float(torch.rand((), dtype=torch.float64, generator=self._generator))

    def remember(self, token: int) -> None:
        """That `token` was said."""
        if self.was_there is not None:
            self.was_there[token] = True
        if self.counts is not None:
            self.counts[token] += 1


def mixed(seed: int, index: int) -> int:
    """A seed for sample `index` of a request, unlike those of requests with neighbouring seeds."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Choice:
    """One chosen token, with what was asked about it."""

    token: int
    logprob: TokenLogprob | None = None


def choose(logits: Tensor, sequences: Ids[Sequence]) -> list[Choice]:
    """One token a row of `logits` `(rows, vocab_size)`, for its sequence; each only once."""
    chosen = [0] * len(sequences)
    groups: dict[tuple[Sampling, bool], list[int]] = defaultdict(list)
    for row, sequence in enumerate(sequences):
        groups[sequence.request.sampling, _is_masked(sequence)].append(row)
    for (sampling, is_masked), rows in groups.items():
        own = [sequences[row] for row in rows]
        some = logits if len(rows) == len(sequences) else logits[rows]
        if sampling.is_plain and not is_masked:
            picked = largest(some)
        else:
            picked = _pick(some, sampling, own)
        for row, token in zip(rows, picked, strict=True):
            chosen[row] = token
    reported = [None if s.request.logprobs is None else s.request.logprobs for s in sequences]
    return [
        Choice(token, None if n is None else logprob_of(logits[row], token, n))
        for row, (token, n) in enumerate(zip(chosen, reported, strict=True))
    ]


def logprob_of(logits: Tensor, token: int, n_top: int) -> TokenLogprob:
    """What the model itself thought of `token`, and its `n_top` likeliest; `logits` of one row."""
    logprobs = logits.float().log_softmax(dim=-1)
    best = logprobs.topk(min(n_top, logprobs.shape[-1]))
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenLogprob(token=token, logprob=float(logprobs[token]), top=top)


def largest(logits: Tensor) -> list[int]:
    """The first of the largest of each row."""
    found: list[int] = rows_of.largest(logits).tolist()
    return found


def _is_masked(sequence: Sequence) -> bool:
    return sequence.grammar is not None or sequence.n_said < sequence.request.min_tokens


def _pick(logits: Tensor, sampling: Sampling, sequences: Ids[Sequence]) -> list[int]:
    logits = _allowed(logits, sampling, sequences)
    if sampling.is_greedy:
        return largest(logits)
    chances = torch.tensor([s.chance.next() for s in sequences], dtype=torch.float64)
    drawn: list[int] = draw(restrict(logits, sampling).softmax(dim=-1), chances).tolist()
    return drawn


def law_of(logits: Tensor, sequence: Sequence) -> Tensor:
    """What the next token of a sequence is drawn from, `(vocab_size,)`, by logits of one row."""
    sampling = sequence.request.sampling
    logits = _allowed(logits[None], sampling, [sequence])
    return restrict(logits, sampling).softmax(dim=-1)[0]


def _allowed(logits: Tensor, sampling: Sampling, sequences: Ids[Sequence]) -> Tensor:
    """Logits after penalties, without the tokens that may not be said now."""
    logits = adjust(
        logits.float(),
        sampling,
        was_there=_stacked([s.chance.was_there for s in sequences]),
        counts=_stacked([s.chance.counts for s in sequences]),
    )
    forbidden = [_forbidden(s, logits.shape[-1]) for s in sequences]
    if any(one is not None for one in forbidden):
        none = torch.zeros(logits.shape[-1], dtype=torch.bool)
        masks = torch.stack([none if one is None else one for one in forbidden])
        logits = logits.masked_fill(masks, -torch.inf)
    return logits


def _forbidden(sequence: Sequence, vocab_size: int) -> Tensor | None:
    """The tokens that this sequence may not say now."""
    forbidden: Tensor | None = None
    if sequence.grammar is not None:
        try:
            forbidden = ~sequence.grammar.allowed()
        except InputError as error:  # a grammar that grew beyond what the library bears
            sequence.failure = str(error)
    if sequence.n_said < sequence.request.min_tokens and sequence.stop_ids:
        too_soon = torch.zeros(vocab_size, dtype=torch.bool)
        too_soon[list(sequence.stop_ids)] = True
        together = too_soon if forbidden is None else forbidden | too_soon
        # A grammar that allows nothing but the end has the last word.
        forbidden = forbidden if bool(together.all()) else together
    return forbidden


def _stacked(each: list[Tensor | None]) -> Tensor | None:
    rows = [one for one in each if one is not None]
    return torch.stack(rows) if rows else None
