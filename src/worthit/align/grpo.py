"""GRPO: answers to one prompt are each other's baseline, and there is no value model.

Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300, equations 3 and 4:

    A_i = (r_i - mean_group r) / std_group r
    L = -1/G sum_i 1/|o_i| sum_t [min(rho A_i, clip(rho, 1 - eps, 1 + eps) A_i) - beta KL_t]
    KL_t = pi_ref/pi - log pi_ref/pi - 1        (unbiased, never negative)

| paper | here |
|---|---|
| G, o_i, r_i | `group` answers, their tokens, their rewards |
| eps | `clip`; `clip_high` above 1, as DAPO has it |
| beta | `beta`, 0 without a reference |

Who divides by what is what the variants differ in (`normaliser`):

| name | a token's loss is divided by | in TRL |
|---|---|---|
| `sequence` | its answer's length, and answers: long wrong ones are cheap | `grpo` |
| `tokens` | all tokens of the batch (DAPO, Yu et al. 2025, arXiv:2503.14476) | `bnpo`, `dapo` |
| `constant` | answers times the longest (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783) | `dr_grpo` |

`scale="none"` leaves the standard deviation out (Dr. GRPO): dividing by it weighs prompts that are
nearly solved, or nearly hopeless, as much as others. A group whose rewards are all equal teaches
nothing: its advantages are 0. On fresh samples rho is 1, and the loss itself is near 0 and may
rise: rewards are what to watch.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from worthit._record import record
from worthit.align.dpo import positive
from worthit.align.ppo import clipped_loss
from worthit.errors import InputError, unknown_name

Normaliser = Literal["sequence", "tokens", "constant"]
Scale = Literal["group", "batch", "none"]
# Added to a standard deviation, as in TRL.
EPS = 1e-4


def group_advantages(rewards: Tensor, *, scale: Scale = "group") -> Tensor:
    """`(n_prompts, group)` rewards to advantages of the same shape."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if scale == "none":
        return centred
    if scale == "batch":
        return centred / (rewards.std() + EPS)
    return centred / (rewards.std(dim=1, keepdim=True) + EPS)


def kl_to_reference(logps: Tensor, reference: Tensor) -> Tensor:
    """KL_t of the tokens that were said: e^d - d - 1 with d = log pi_ref - log pi."""
    d = reference - logps
    return d.exp() - d - 1


def grpo_loss(
    logps: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    reference: Tensor | None = None,
    beta: float = 0.0,
    clip: float = 0.2,
    clip_high: float | None = None,
    normaliser: Normaliser = "tokens",
    max_tokens: int = 0,
) -> Tensor:
    """A scalar.

    Args:
        logps: `(n, width)`, of the tokens that were said, with gradients.
        old: the same under the policy that said them.
        advantages: `(n,)`.
        mask: `(n, width)`, True on tokens of a completion.
        reference: `(n, width)`; needed where `beta` is not 0.
        max_tokens: the longest completion allowed; needed for `constant`.
    """
    high = clip if clip_high is None else clip_high
    loss = clipped_loss(logps, old, advantages[:, None], low=clip, high=high)
    if beta:
        if reference is None:
            raise InputError("beta: a KL penalty needs log-probabilities of a reference")
        loss = loss + beta * kl_to_reference(logps, reference)
    loss = loss * mask
    if normaliser == "sequence":
        return (loss.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()
    if normaliser == "tokens":
        return loss.sum() / mask.sum().clamp(min=1)
    return loss.sum() / (len(loss) * max_tokens)


@record
class GRPO:
    """Settings of GRPO."""

    group: int = 8
    beta: float = 0.0
    clip: float = 0.2
    clip_high: float | None = None
    normaliser: Normaliser = "tokens"
    scale: Scale = "group"

    def __post_init__(self) -> None:
        for kind, got, known in (
            ("normaliser", self.normaliser, get_args(Normaliser)),
            ("scale", self.scale, get_args(Scale)),
        ):
            if got not in known:
                raise unknown_name(kind, got, known)
        if self.group < 2:
            raise InputError(f"group: answers are compared, so at least 2, got {self.group}")
        positive("clip", self.clip)
        if not 0 <= self.beta < float("inf"):
            raise InputError(f"beta: must be 0 or more, got {self.beta}")


def is_dead(rewards: Tensor) -> Tensor:
    """`(n_prompts,)`: groups whose rewards are all equal, from which nothing is learned."""
    return (rewards == rewards[:, :1]).all(dim=1)


def dead_share(rewards: Tensor) -> float:
    """The share of groups from which nothing is learned."""
    return float(is_dead(rewards).float().mean()) if len(rewards) else float("nan")
