"""SimPO: the mean log-probability is the reward, and there is no reference.

Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward",
arXiv:2405.14734, equation 6:

    -log sigma(beta/|y_w| log pi(y_w|x) - beta/|y_l| log pi(y_l|x) - gamma)

| paper | here |
|---|---|
| beta | `beta`, 2 to 10: a mean a token is small |
| gamma | `gamma`, the margin that the chosen one should win by; TRL's `simpo_gamma` |
| abs y | `Scored.lengths` |

A sum over tokens falls with length whatever the text; the mean is what generation is ranked by.
Nothing holds the policy near where it started: watch the displacement.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from worthit._record import record
from worthit.align.dpo import positive
from worthit.align.scores import Scored
from worthit.errors import InputError


def simpo_loss(margin: Tensor, *, beta: float, gamma: float) -> Tensor:
    """The loss of each pair, from the difference `margin` of log-probabilities a token."""
    return -functional.logsigmoid(beta * margin - gamma)


@record
class SimPO:
    """Simple preference optimisation."""

    name: ClassVar[str] = "simpo"
    needs_reference: ClassVar[bool] = False

    beta: float = 2.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        if not 0 <= self.gamma < float("inf"):
            raise InputError(f"gamma: must be 0 or more, got {self.gamma}")

    def of_pairs(self, chosen: Scored, rejected: Scored) -> Tensor:
        """`(n,)`."""
        return simpo_loss(chosen.means - rejected.means, beta=self.beta, gamma=self.gamma)

    def rewards(self, scored: Scored) -> Tensor:
        """beta times the log-probability a token."""
        return self.beta * scored.means
