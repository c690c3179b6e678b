"""Choose the next token: pure functions on logits `(batch, vocab_size)`, applied in this order.

| step | after it |
|---|---|
| `penalise_repeats` | tokens that were there are less likely (Keskar et al. 2019, CTRL, arXiv:1909.05858) |
| `penalise_counts` | less what was said once, or as often as it was said (OpenAI's presence and frequency penalties) |
| `add_bias` | some tokens more or less likely by a number of the caller's |
| temperature | logits divided by it; 0 takes the largest, and nothing below matters |
| `keep_top_k` | the k largest remain (Fan et al. 2018, arXiv:1805.04833) |
| `keep_top_p` | the fewest whose probabilities reach p (Holtzman et al. 2019, arXiv:1904.09751) |
| `keep_min_p` | those at least `min_p` times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082) |

What is dropped becomes minus infinity. The order is that of `transformers`. `choose` takes one
`Sampling` for a whole batch; an engine, whose rows all have their own, takes `adjust` and `restrict`
for rows that agree and then `draw` with a number from each row's own source of chance.
"""  # noqa: E501 - a row of a table is one line

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worthit.errors import InputError

# Below it the largest is all there is, and logits divided by it could leave the numbers of fp32.
LEAST_TEMPERATURE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen; as it stands, greedily.

    Attributes:
        temperature: 0 is greedy, and so is next to nothing; 1 is the model's own distribution.
        top_k: 0 keeps all.
        top_p: 1 keeps all.
        min_p: 0 keeps all.
        repetition_penalty: 1 changes nothing; above 1, what was there is less likely.
        presence_penalty: subtracted from the logit of every token that was said.
        frequency_penalty: the same, times how often it was said. Neither counts the prompt.
        logit_bias: `(token, number)` pairs, or a mapping; the number is added to the logit.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        bias = self.logit_bias
        if isinstance(bias, Mapping):
            object.__setattr__(self, "logit_bias", tuple(sorted(bias.items())))
        problems = [
            f"{name}: must be {range_}, got {getattr(self, name)}"
            for name, range_, is_good in (
                ("temperature", "0 or more", self.temperature >= 0),
                ("top_k", "0 or more", self.top_k >= 0),
                ("top_p", "above 0 and at most 1", 0 < self.top_p <= 1),
                ("min_p", "from 0 to 1", 0 <= self.min_p <= 1),
                ("repetition_penalty", "above 0", self.repetition_penalty > 0),
                ("presence_penalty", "a number", True),
                ("frequency_penalty", "a number", True),
            )
            if not (is_good and math.isfinite(getattr(self, name)))
        ]
        problems += [
            f"logit_bias[{token}]: must be a number, got {value}"
            for token, value in self.logit_bias
            if math.isnan(value)
        ]
        if problems:
            raise InputError(*problems)

    @property
    def is_greedy(self) -> bool:
        """Whether the largest logit is taken."""
        return self.temperature < LEAST_TEMPERATURE

    @property
    def has_history(self) -> bool:
        """Whether what was there or said changes the choice."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @property
    def is_plain(self) -> bool:
        """Whether the model's own logits decide as they are, and greedily."""
        return self.is_greedy and not self.has_history and not self.logit_bias


def choose(
    logits: Tensor,
    sampling: Sampling,
    *,
    was_there: Tensor | None = None,
    counts: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One token a row, `(batch,)`.

    Args:
        logits: `(batch, vocab_size)`.
        was_there: `(batch, vocab_size)` booleans, the tokens that a penalty on repeats is for.
        counts: `(batch, vocab_size)`, how often each token was said.
        generator: the source of chance; greedy choice needs none.
    """
    logits = adjust(logits, sampling, was_there=was_there, counts=counts)
    if sampling.is_greedy:
        return largest(logits)
    kept = restrict(logits.float(), sampling)
    return torch.multinomial(kept.softmax(dim=-1), 1, generator=generator)[:, 0]


def largest(logits: Tensor) -> Tensor:
    """The first of the largest of each row: by NumPy on a CPU, ten times as fast as torch there."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.detach().float().numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


def adjust(
    logits: Tensor,
    sampling: Sampling,
    *,
    was_there: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Logits after penalties and bias: what greedy choice takes the largest of."""
    if was_there is not None and sampling.repetition_penalty != 1.0:
        logits = penalise_repeats(logits, was_there, sampling.repetition_penalty)
    if counts is not None and (sampling.presence_penalty or sampling.frequency_penalty):
        logits = penalise_counts(
            logits, counts, sampling.presence_penalty, sampling.frequency_penalty
        )
    if sampling.logit_bias:
        logits = add_bias(logits, sampling.logit_bias)
    return logits


def draw(probabilities: Tensor, chances: Tensor) -> Tensor:
    """The token of each row at which the running sum passes its chance, `(batch,)`.

    Args:
        probabilities: `(batch, vocab_size)`, of any total.
        chances: `(batch,)`, from 0 to below 1.
    """
    # In fp64: the sum of 10^5 small numbers in fp32 loses its last tokens.
    sums = probabilities.double().cumsum(dim=-1)
    wanted = chances.double()[:, None] * sums[:, -1:]
    found = torch.searchsorted(sums, wanted, right=True)[:, 0]
    # Rounding may take the product to the whole sum.
    last = probabilities.shape[-1] - 1 - probabilities.flip(-1).gt(0).long().argmax(dim=-1)
    return torch.minimum(found, last)


def restrict(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits at the temperature, without the tokens that may not be drawn."""
    logits = logits / sampling.temperature
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1.0:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p > 0.0:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def penalise_repeats(logits: Tensor, was_there: Tensor, penalty: float) -> Tensor:
    """Logits of tokens that were there: positive ones over the penalty, negative ones times it."""
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(was_there, lowered, logits)


def penalise_counts(logits: Tensor, counts: Tensor, presence: float, frequency: float) -> Tensor:
    """Logits less `presence` for each token that was said and `frequency` for each time."""
    return logits - presence * (counts > 0) - frequency * counts


def add_bias(logits: Tensor, bias: tuple[tuple[int, float], ...]) -> Tensor:
    """Logits with a number added to those of some tokens."""
    tokens = torch.tensor([token for token, _ in bias], dtype=torch.long, device=logits.device)
    numbers = torch.tensor([number for _, number in bias], device=logits.device)
    biased = logits.clone()
    biased[:, tokens] += numbers.to(logits.dtype)
    return biased


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The `k` largest of each row, and what equals the last of them."""
    last = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < last, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The likeliest of each row, as few as reach the probability `p` together."""
    ascending, order = logits.sort(dim=-1)
    # A token goes when it and all less likely ones are no more than what p leaves over.
    goes = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    goes[:, -1] = False
    return logits.masked_fill(goes.scatter(1, order, goes), -math.inf)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Tokens at least `min_p` times as likely as the likeliest of their row."""
    probabilities = logits.softmax(dim=-1)
    floor = min_p * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(probabilities < floor, -math.inf)
