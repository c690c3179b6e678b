"""What a set of preferences is like, in numbers: the part of a case's data that methods depend on.

`preference_stats.facts_of` reads them off a set. A case file may also state them.
"""

from __future__ import annotations

from typing import Literal

from worthit._record import record
from worthit.errors import CaseError

Shape = Literal["pair", "binary", "demonstration", "prompt"]
SHAPES: tuple[Shape, ...] = ("pair", "binary", "demonstration", "prompt")


@record
class Share:
    """A share of `n` cases with its interval, beside what it would be by chance."""

    share: float
    low: float
    high: float
    n: int
    by_chance: float = 0.5

    @property
    def differs(self) -> bool:
        """Whether chance alone is outside of the interval."""
        return not self.low <= self.by_chance <= self.high


@record
class TraitShare:
    """How often answers with a trait of `TRAITS` are the chosen ones."""

    trait: str
    chosen: Share


@record
class ModelMargin:
    """How a model that was not trained on them sees the answers of `n` examples.

    `ranked` is the share of pairs whose better answer has the higher log-probability a token (of
    good and bad answers, the chance that a good one has), `ranked_summed` the same with the
    log-probability of the whole answer. `margin` is the mean difference a token, `chosen` the mean
    log-probability a token of better answers, all in nats.
    """

    model: str
    n: int
    ranked: Share | None
    ranked_summed: Share | None
    margin: float | None
    chosen: float


@record
class PreferenceFacts:
    """A set of preferences in numbers; None where the shape or the size does not give them.

    Attributes:
        shape: of the examples; `n` of them about `n_prompts` different prompts.
        duplicates: rows that repeat an earlier one, label included.
        contradictions: comparisons, or answers to one prompt, with labels both ways.
        judged_twice: comparisons with two labels or more, from which `noise` is estimated.
        noise: share of wrong labels; see `preference_stats`.
        noise_at_most: what it cannot exceed if labels are flipped at random.
        longer: of pairs of unequal length, the share whose longer answer is chosen; for binary
            labels, the chance that a good answer is longer than a bad one.
        length_correlation: of being chosen with the logarithm of the length, within pairs.
        length_ratio: chosen over rejected, geometric mean.
        formatting: of pairs where one answer has a trait, the share where it is chosen; for binary
            labels, the share of good ones among answers that have it.
        desirable: share of good labels, in the shape `binary`.
        mean_chars, max_chars: of a prompt with one answer.
        margin: under a model, where weights were given.
    """

    shape: Shape
    n: int
    n_prompts: int | None = None
    duplicates: int = 0
    contradictions: int = 0
    judged_twice: int = 0
    noise: Share | None = None
    noise_at_most: float | None = None
    longer: Share | None = None
    length_correlation: float | None = None
    length_ratio: float | None = None
    formatting: tuple[TraitShare, ...] = ()
    desirable: float | None = None
    is_chat: bool = False
    mean_chars: float | None = None
    max_chars: int | None = None
    source: str = ""
    margin: ModelMargin | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise CaseError(f"preferences need one example or more, got n={self.n}")
        if self.desirable is not None and not 0 <= self.desirable <= 1:
            raise CaseError(f"desirable must be in [0, 1], got {self.desirable}")
