"""Contrast-consistent search: a direction on which a statement and its denial sum to one.

Burns et al. 2022, "Discovering Latent Knowledge in Language Models Without Supervision",
arXiv:2212.03827, section 2.2. Each question is read twice, completed with *yes* and with *no*; with
both sides normalised on their own, which removes what the word itself adds,

    p(x) = sigmoid(theta^T x + b)
    loss = mean (p(x+) - (1 - p(x-)))^2  +  mean min(p(x+), p(x-))^2       consistency + confidence
    answer: yes where (p(x+) + 1 - p(x-)) / 2 > 1/2

The sign is not identified: without labels *yes* may be either side, so that accuracy is reported
for the better of the two, and what any feature that differs between the sides would give. Several
restarts, the least loss wins (section 3.1). Normalisations: `mean` subtracts each side's mean;
`standard` divides by its deviation too, as the authors' code does.

What it finds is any feature that the two sides negate, not truth (Farquhar et al. 2023,
arXiv:2312.10029): compare with a random probe and with labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from worthit.errors import InputError

Normalisation = Literal["mean", "standard"]


@dataclass(frozen=True)
class CCS:
    """A direction found without labels.

    Attributes:
        weight: `(d,)`, on normalised activations; bias: its offset.
        loss: of the restart that was kept; losses: of every restart.
    """

    weight: Tensor
    bias: float
    loss: float
    losses: tuple[float, ...]
    normalisation: Normalisation

    def probability(self, yes: Tensor, no: Tensor) -> Tensor:
        """Of *yes*, `(n,)`; each side is normalised by its own rows, as in fitting."""
        first, second = (normalised(side, self.normalisation) for side in (yes, no))
        p, q = (torch.sigmoid(side @ self.weight + self.bias) for side in (first, second))
        return (p + 1 - q) / 2

    def accuracy(self, yes: Tensor, no: Tensor, truth: Tensor) -> float:
        """The share of right answers, with the sign that is right more often: at least a half."""
        right = float(((self.probability(yes, no) > 0.5) == truth.bool()).double().mean())
        return max(right, 1 - right)


def ccs_loss(p_yes: Tensor, p_no: Tensor) -> Tensor:
    """Consistency and confidence of probabilities `(n,)` (section 2.2)."""
    consistency = (p_yes - (1 - p_no)).square().mean(0)
    confidence = torch.minimum(p_yes, p_no).square().mean(0)
    return consistency + confidence


def normalised(x: Tensor, how: Normalisation) -> Tensor:
    """`x` `(n, d)` without its mean and, for `standard`, at deviation 1."""
    x = x.double()
    x = x - x.mean(0)
    if how == "standard":
        deviation = x.std(0)
        x = x / torch.where(deviation > 1e-8 * deviation.max(), deviation, 1.0)
    return x


def fit_ccs(
    yes: Tensor,
    no: Tensor,
    *,
    normalisation: Normalisation = "standard",
    n_restarts: int = 10,
    n_steps: int = 500,
    lr: float = 1e-2,
    weight_decay: float = 1e-2,
    has_bias: bool = True,
    seed: int = 0,
) -> CCS:
    """The best of several directions, all descended at once by AdamW on all rows.

    Args:
        yes, no: `(n, d)`, the two readings of each question, row by row.

    Raises:
        InputError: sides of different shape, or a name of a normalisation that does not exist.
    """
    if yes.shape != no.shape or yes.ndim != 2 or len(yes) < 2:
        raise InputError(
            "yes, no: must both be (n, d) with n at least 2, got "
            f"{list(yes.shape)} and {list(no.shape)}"
        )
    if normalisation not in ("mean", "standard"):
        raise InputError(f"normalisation: must be mean or standard, got {normalisation!r}")
    first, second = (normalised(side, normalisation) for side in (yes, no))
    generator = torch.Generator().manual_seed(seed)
    d = yes.shape[1]
    # The scale at which a linear layer starts.
    start = (torch.rand(d, n_restarts, generator=generator, dtype=torch.float64) * 2 - 1) / d**0.5
    weight = nn.Parameter(start)
    bias = nn.Parameter(torch.zeros(n_restarts, dtype=torch.float64), requires_grad=has_bias)
    optimizer = torch.optim.AdamW(
        [p for p in (weight, bias) if p.requires_grad], lr=lr, weight_decay=weight_decay
    )

    def losses() -> Tensor:
        p, q = (torch.sigmoid(side @ weight + bias) for side in (first, second))
        return ccs_loss(p, q)

    for _ in range(n_steps):
        optimizer.zero_grad()
        losses().sum().backward()
        optimizer.step()
    with torch.no_grad():
        found, offsets = losses(), bias.tolist()
    best = int(found.argmin())
    return CCS(
        weight=weight[:, best].detach().clone(),
        bias=offsets[best],
        loss=float(found[best]),
        losses=tuple(found.tolist()),
        normalisation=normalisation,
    )
