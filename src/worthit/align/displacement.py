"""What learning from pairs did to both completions: margins, accuracy, and where the mass went.

A loss of margins is satisfied when the rejected completion falls faster than the chosen one. Both
may fall, and what rises is neither (likelihood displacement: Razin et al. 2024, arXiv:2410.08847;
Pal et al. 2024, arXiv:2402.13228). The training curve does not show it; these numbers do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from worthit.align.scores import Scored, score
from worthit.align.sequences import Completions
from worthit.train.objective import device_of

# A mean fall of less than this, in nats a completion, is not called one.
NOTABLE_FALL = 0.1


@dataclass(frozen=True)
class Displacement:
    """Pairs under a policy, beside the same under its reference.

    Attributes:
        n: pairs.
        accuracy: share of pairs whose chosen completion the policy finds likelier, by the sum.
        mean_accuracy: the same by the log-probability a token, what decoding ranks by.
        reference_accuracy: by the sum, under the reference.
        chosen, rejected: mean log-probability of a completion, in nats.
        chosen_change, rejected_change: against the reference; None without one.
        margin: mean of the chosen change less the rejected one.
        both_fell: share of pairs of which both completions became less likely.
        chosen_tokens, rejected_tokens: mean lengths.
        length_correlation: of the margin a pair gained with how much longer its chosen completion
            is; near 1, length is what was learned. None where lengths do not vary.
    """

    n: int
    accuracy: float
    mean_accuracy: float
    chosen: float
    rejected: float
    chosen_tokens: float
    rejected_tokens: float
    reference_accuracy: float | None = None
    chosen_change: float | None = None
    rejected_change: float | None = None
    margin: float | None = None
    both_fell: float | None = None
    length_correlation: float | None = None

    @property
    def is_displaced(self) -> bool:
        """Whether chosen completions became less likely on average."""
        return self.chosen_change is not None and self.chosen_change < -NOTABLE_FALL

    def to_json(self) -> dict[str, float | int | None]:
        """As plain JSON types."""
        return asdict(self)

    def scores(self) -> dict[str, float]:
        """What there is, by name, as metrics of an evaluation."""
        return {name: float(x) for name, x in asdict(self).items() if x is not None}

    def sentence(self) -> str:
        """What happened, in words."""
        text = f"{100 * self.accuracy:.0f} % of held-out pairs ranked right"
        if self.reference_accuracy is not None:
            text += f", {100 * self.reference_accuracy:.0f} % before"
        if self.chosen_change is None or self.rejected_change is None:
            return text
        text += (
            f"; chosen {_change(self.chosen_change)}, rejected {_change(self.rejected_change)} "
            "a completion"
        )
        if self.is_displaced and self.both_fell is not None:
            text += (
                f": likelihood displacement, both fell in {100 * self.both_fell:.0f} % of pairs, "
                "and what rose is neither; raise beta, stop earlier, or add the chosen ones' loss"
            )
        return text


@torch.no_grad()
def displacement(model: nn.Module, batches: Iterable[Completions]) -> Displacement | None:
    """Read `model`, as it stands, on batches of pairs; None where there are none."""
    device = device_of(model)
    chosen, rejected = [], []
    for batch in batches:
        one, other = score(model, batch.to(device)).halves()
        chosen.append(one)
        rejected.append(other)
    return None if not chosen else compared(_joined(chosen), _joined(rejected))


def compared(chosen: Scored, rejected: Scored) -> Displacement:
    """The numbers of pairs that are scored already."""
    found: dict[str, float] = {}
    if chosen.reference is not None and rejected.reference is not None:
        up, down = chosen.ratios, rejected.ratios
        gained, longer = up - down, chosen.lengths - rejected.lengths
        found = {
            "reference_accuracy": _mean(chosen.reference > rejected.reference),
            "chosen_change": _mean(up),
            "rejected_change": _mean(down),
            "margin": _mean(gained),
            "both_fell": _mean((up < 0) & (down < 0)),
        }
        if len(longer) > 1 and bool(longer.std() > 0) and bool(gained.std() > 0):
            pair = torch.stack([gained.double(), longer.double()])
            found["length_correlation"] = float(torch.corrcoef(pair)[0, 1])
    return Displacement(
        n=len(chosen.logps),
        accuracy=_mean(chosen.logps > rejected.logps),
        mean_accuracy=_mean(chosen.means > rejected.means),
        chosen=_mean(chosen.logps),
        rejected=_mean(rejected.logps),
        chosen_tokens=_mean(chosen.lengths),
        rejected_tokens=_mean(rejected.lengths),
        **found,
    )


def _joined(parts: list[Scored]) -> Scored:
    references = [p.reference for p in parts if p.reference is not None]
    return Scored(
        torch.cat([p.logps for p in parts]),
        torch.cat([p.lengths for p in parts]),
        torch.cat(references) if len(references) == len(parts) else None,
    )


def _mean(x: Tensor) -> float:
    return float(x.double().mean())


def _change(x: float) -> str:
    return f"{'rose' if x >= 0 else 'fell'} by {abs(x):.1f} nats"
