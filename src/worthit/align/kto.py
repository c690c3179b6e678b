"""KTO: from thumbs up or down, completion by completion; nothing is paired.

Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization",
arXiv:2402.01306, equations 7 and 8, as losses:

    lambda_D (1 - sigma(beta (r - z)))   where y is desirable
    lambda_U (1 - sigma(beta (z - r)))   where it is not
    r = log pi(y|x) / pi_ref(y|x)
    z = max(0, mean over the batch of log pi(y'|x) / pi_ref(y'|x)),  y' the answer to another prompt

| paper | here |
|---|---|
| beta, lambda_D, lambda_U | `beta`, `good_weight`, `bad_weight` |
| z_0 | `z`, without gradient: what the policy gained on completions in general |

z is an estimate of KL(pi, pi_ref) by mismatched completions; negative estimates are none and are
clamped. `partners` chooses y' once for a data set, so that the reference is scored once, whatever
batches are drawn later. TRL rotates within fixed batches; over all data the estimate is the same.

Where one kind is rare, weights keep the two in balance: the paper holds
lambda_D n_D / (lambda_U n_U) between 1 and 4/3. `balanced` does that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from worthit._record import record
from worthit.align.dpo import positive
from worthit.align.scores import Scored, score
from worthit.align.sequences import Completions, Ids, Rated
from worthit.errors import InputError
from worthit.train.batch import Batch


def kl_estimate(mismatched: Scored) -> Tensor:
    """z, a scalar without gradient; 0 where the estimate is negative."""
    return mismatched.ratios.detach().mean().clamp(min=0)


def kto_loss(
    ratios: Tensor,
    is_good: Tensor,
    z: Tensor,
    *,
    beta: float,
    good_weight: float = 1.0,
    bad_weight: float = 1.0,
) -> Tensor:
    """The loss of each completion, `(n,)`.

    Args:
        ratios: `(n,)`, log-ratio to the reference, in nats.
        is_good: `(n,)`, booleans.
        z: see `kl_estimate`.
    """
    sign = torch.where(is_good, 1.0, -1.0)
    weight = torch.where(is_good, good_weight, bad_weight)
    return weight * (1 - torch.sigmoid(sign * beta * (ratios - z)))


def partners(rated: Sequence[Rated]) -> list[Ids]:
    """For each prompt the completion of another one: the mismatched y'.

    The next example whose prompt differs, around the end; neighbours may share a prompt, and then
    a plain rotation by one would match.

    Raises:
        InputError: there is one prompt alone.
    """
    n = len(rated)
    if len({r.prompt for r in rated}) < 2:
        raise InputError(
            "KTO estimates its KL from answers to other prompts, and all prompts are the same; "
            "give examples of at least two"
        )
    # From the end backwards, twice around: where the next different prompt stands.
    next_other = [0] * n
    for k in range(2 * n - 1, -1, -1):
        i, j = k % n, (k + 1) % n
        next_other[i] = j if rated[j].prompt != rated[i].prompt else next_other[j]
    return [rated[j].completion for j in next_other]


@record
class KTO:
    """Kahneman-Tversky optimisation."""

    name: ClassVar[str] = "kto"
    needs_reference: ClassVar[bool] = True

    beta: float = 0.1
    good_weight: float = 1.0
    bad_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beta", "good_weight", "bad_weight"):
            positive(name, getattr(self, name))

    @classmethod
    def balanced(cls, rated: Sequence[Rated], *, beta: float = 0.1) -> Self:
        """Weights that give both kinds the same say, the rarer one the larger.

        Raises:
            InputError: only one kind is there.
        """
        n_good = sum(r.is_good for r in rated)
        n_bad = len(rated) - n_good
        if not n_good or not n_bad:
            raise InputError(
                f"KTO learns from both kinds, got {n_good} good and {n_bad} bad completions"
            )
        if n_good < n_bad:
            return cls(beta=beta, good_weight=n_bad / n_good)
        return cls(beta=beta, bad_weight=n_good / n_bad)

    def rewards(self, scored: Scored) -> Tensor:
        """beta log(pi / pi_ref)."""
        return self.beta * scored.ratios


class RatedLoss:
    """The mean of KTO's loss over a batch of rated rows with the mismatched ones below them."""

    def __init__(self, method: KTO) -> None:
        self.method = method

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar with gradients; the mismatched rows get none."""
        assert isinstance(batch, Completions)
        assert batch.is_good is not None
        n = len(batch.is_good)
        rated, others = _blocks(batch, n)
        with torch.no_grad():
            z = kl_estimate(score(model, others))
        method = self.method
        return kto_loss(
            score(model, rated).ratios,
            batch.is_good,
            z,
            beta=method.beta,
            good_weight=method.good_weight,
            bad_weight=method.bad_weight,
        ).mean()


def _blocks(batch: Completions, n: int) -> tuple[Completions, Completions]:
    reference = batch.reference
    return (
        Completions(
            batch.input_ids[:n],
            batch.targets[:n],
            reference=None if reference is None else reference[:n],
        ),
        Completions(
            batch.input_ids[n:],
            batch.targets[n:],
            reference=None if reference is None else reference[n:],
        ),
    )
