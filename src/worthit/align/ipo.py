"""Identity preference optimisation: a margin to reach, not one to widen for ever.

Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences",
arXiv:2310.12036, equation 17:

    (h - 1 / (2 tau))^2

| paper | here |
|---|---|
| tau | `beta`, as in DPO: the price of leaving the reference |
| h_pi(y_w, y_l, x) | chosen minus rejected log-ratio to the reference |

Where labels are deterministic, DPO's loss has no minimum: its margin grows and regularisation is
gone. This one has its minimum at 1 / (2 tau) whatever the labels' certainty.

Departure: ratios are means over the tokens of a completion, not sums. The paper's text sums; its
authors' experiments, and TRL, take means, so that one target fits all lengths.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from worthit._record import record
from worthit.align.dpo import positive
from worthit.align.scores import Scored


def ipo_loss(margin: Tensor, *, beta: float) -> Tensor:
    """The loss of each pair, from its `margin` in nats a token."""
    return (margin - 1 / (2 * beta)) ** 2


@record
class IPO:
    """Identity preference optimisation."""

    name: ClassVar[str] = "ipo"
    needs_reference: ClassVar[bool] = True

    beta: float = 0.1

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def of_pairs(self, chosen: Scored, rejected: Scored) -> Tensor:
        """`(n,)`."""
        margin = chosen.ratios / chosen.lengths - rejected.ratios / rejected.lengths
        return ipo_loss(margin, beta=self.beta)

    def rewards(self, scored: Scored) -> Tensor:
        """beta times the log-ratio a token, what the loss compares."""
        return self.beta * scored.ratios / scored.lengths
