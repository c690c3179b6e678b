"""ORPO: fine-tuning and preferences in one loss, without a reference.

Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model",
arXiv:2403.07691, equations 3 to 7:

    NLL(y_w) - lambda log sigma(log odds(y_w|x) - log odds(y_l|x)),   odds = p / (1 - p)

| paper | here |
|---|---|
| P(y given x) | exp of the mean log-probability a token, as in their code |
| lambda | `weight`; TRL calls it beta |
| L_SFT | the mean NLL of the tokens of the chosen completion |

log(1 - exp(x)) loses every digit as x nears 0: it is taken by expm1 above -log 2 and by log1p
below, and a completion of probability one, where the odds are infinite, is held at a clamp.

Departure: TRL's L_SFT includes the prompt; the paper's equation 2 has the completion given it.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from worthit._record import record
from worthit.align.dpo import positive
from worthit.align.scores import Scored

# The largest mean log-probability: its odds are 1e6 to one, and its gradient finite.
NEAREST_TO_CERTAIN = -1e-6


def log_odds(mean_logps: Tensor) -> Tensor:
    """log p - log(1 - p), from log p."""
    x = mean_logps.clamp(max=NEAREST_TO_CERTAIN)
    # Each branch gets what it can take: a gradient of the other one would be NaN.
    is_far = x < -math.log(2)
    far, near = torch.where(is_far, x, -1.0), torch.where(is_far, -0.1, x)
    log_rest = torch.where(is_far, torch.log1p(-far.exp()), (-torch.expm1(near)).log())
    return x - log_rest


def odds_ratio_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigma of the log odds ratio, from mean log-probabilities `(n,)`."""
    return -functional.logsigmoid(log_odds(chosen) - log_odds(rejected))


@record
class ORPO:
    """Odds ratio preference optimisation."""

    name: ClassVar[str] = "orpo"
    needs_reference: ClassVar[bool] = False

    weight: float = 0.1

    def __post_init__(self) -> None:
        positive("weight", self.weight)

    def of_pairs(self, chosen: Scored, rejected: Scored) -> Tensor:
        """`(n,)`; the mean of the first term is over all chosen tokens of the batch."""
        nll = -chosen.logps.sum() / chosen.lengths.sum()
        return nll + self.weight * odds_ratio_loss(chosen.means, rejected.means)

    def rewards(self, scored: Scored) -> Tensor:
        """lambda times the log-probability a token."""
        return self.weight * scored.means
