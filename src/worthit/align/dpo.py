"""Direct preference optimisation: the policy is its own reward model.

Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward
Model", arXiv:2305.18290. KL-regularised RL has its optimum at pi(y|x) ~ pi_ref(y|x) exp(r/beta), so
that r = beta log(pi / pi_ref) up to a constant of the prompt, and preferences are fitted directly
(equation 7):

    -log sigma(beta h),   h = log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)

| paper | here |
|---|---|
| pi, pi_ref | the policy; itself before training |
| y_w, y_l | `chosen`, `rejected` |
| beta | `beta`: how dear drifting from the reference is |
| h | `margin`, the difference of `Scored.ratios`, sums over tokens |

Other kinds, each of the same h:

- `hinge`: max(0, 1 - beta h); Zhao et al. 2023, SLiC-HF, arXiv:2305.10425, with beta h for its
  difference of log-probabilities, as TRL has it.
- `label_smoothing` eps with `sigmoid`: labels are wrong with probability eps (conservative DPO,
  Mitchell 2023): (1 - eps) l(h) + eps l(-h). The margin settles where sigma(beta h) = 1 - eps.
- `robust`: ((1 - eps) l(h) - eps l(-h)) / (1 - 2 eps); Ray Chowdhury et al. 2024, "Provably Robust
  DPO", arXiv:2403.00409, equation 13. Over random flips its mean is the loss of the clean labels.

The loss sees h alone: both log-probabilities may fall while it improves (likelihood displacement,
Razin et al. 2024, arXiv:2410.08847). `worthit.align.displacement` reports it.
"""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from torch import Tensor
from torch.nn import functional

from worthit._record import record
from worthit.align.scores import Scored
from worthit.errors import InputError, unknown_name

Kind = Literal["sigmoid", "hinge", "robust"]


def dpo_loss(
    margin: Tensor, *, beta: float, kind: Kind = "sigmoid", label_smoothing: float = 0.0
) -> Tensor:
    """The loss of each pair, from its `margin` h in nats."""
    x = beta * margin
    right, flipped = -functional.logsigmoid(x), -functional.logsigmoid(-x)
    eps = label_smoothing
    if kind == "hinge":
        return functional.relu(1 - x)
    if kind == "robust":
        return ((1 - eps) * right - eps * flipped) / (1 - 2 * eps)
    return (1 - eps) * right + eps * flipped if eps else right


@record
class DPO:
    """Direct preference optimisation."""

    name: ClassVar[str] = "dpo"
    needs_reference: ClassVar[bool] = True

    beta: float = 0.1
    kind: Kind = "sigmoid"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise unknown_name("kind of dpo", self.kind, get_args(Kind))
        positive("beta", self.beta)
        if not 0 <= self.label_smoothing < 0.5:
            raise InputError(
                f"label_smoothing: must be at least 0 and below 0.5, got {self.label_smoothing}; "
                "at a half labels say nothing"
            )
        if self.kind == "hinge" and self.label_smoothing:
            raise InputError("label_smoothing: hinge has none; use sigmoid or robust")

    def of_pairs(self, chosen: Scored, rejected: Scored) -> Tensor:
        """`(n,)`."""
        return dpo_loss(
            chosen.ratios - rejected.ratios,
            beta=self.beta,
            kind=self.kind,
            label_smoothing=self.label_smoothing,
        )

    def rewards(self, scored: Scored) -> Tensor:
        """beta log(pi / pi_ref)."""
        return self.beta * scored.ratios


def positive(name: str, value: float) -> None:
    """Raise unless a setting is above 0 and finite."""
    if not 0 < value < float("inf"):
        raise InputError(f"{name}: must be positive and finite, got {value}")
