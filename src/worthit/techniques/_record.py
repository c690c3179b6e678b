"""What a technique is: one record, whose `apply` turns a case into the case with the technique.

The gain is never written down: the judge evaluates `cost` on both cases. A record holds what cost
cannot know: which bottleneck the technique was invented for, what adopting it takes, what it does
nothing for, what goes wrong, and who found out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Literal

from worthit._record import record
from worthit.spec.case import Adoption, Case

Bottleneck = Literal[
    "decode-weights",
    "decode-cache",
    "kv-capacity",
    "cache-reservation",
    "prefill-recompute",
    "prefill-stall",
    "batch-idle",
    "attention-compute",
    "attention-traffic",
    "matmul-compute",
    "elementwise-traffic",
    "weight-capacity",
    "optimizer-memory",
    "activation-memory",
    "communication",
    "launch-overhead",
    "expert-imbalance",
    "context-length",
    "quality",
    "stability",
    "separate-skills",
    "opacity",
    "control",
    "preferences",
    "single-answer",
]

# Bottlenecks that no cost model sees: evidence is cited and an experiment decides.
UNSEEN: frozenset[str] = frozenset(
    {
        "quality",
        "stability",
        "expert-imbalance",
        "separate-skills",
        "opacity",
        "control",
        "preferences",
        "single-answer",
    }
)
# Of these, what is relieved at a price by its nature, where the case has said that it needs it: the
# price is shown, and is no reason against trying.
PAID_FOR: frozenset[str] = frozenset({"single-answer"})

Metric = Literal[
    "s_per_token", "ttft_s", "stall_s", "memory_bytes", "train_total_s", "context_shortfall"
]


@record
class Source:
    """A citation: `cite` as Author Year, `id` an arXiv number or a public title, `where` inside."""

    cite: str
    title: str
    id: str
    where: str = ""

    def __str__(self) -> str:
        where = f", {self.where}" if self.where else ""
        return f"{self.cite}, {self.title}, {self.id}{where}"


@record
class Evidence:
    """A claim about quality that somebody measured, in our words, with its source."""

    claim: str
    source: Source


@record
class Technique:
    """One technique of the catalogue.

    Args:
        id: public name; equals the file's stem with `_` for `-`.
        name: the field's full name.
        relieves: bottlenecks it acts on, its own first.
        bottleneck: that bottleneck in one sentence, as its authors would put it.
        apply: `case -> case with the technique`, pure, knobs as keyword arguments with defaults;
            raises `NotApplicable` (what was wrong, what was got, what would make it apply).
        is_present: whether the case has it already.
        remove: `case -> the same case without it`, so that what is in place can be judged too;
            None where the case without it is not well defined.
        adoption: the least it takes to get there from a model or service without it.
        cost_of_adoption: what that is, in one sentence with a number where one is known.
        nothing_when: the situations in which it does nothing, as carefully as when it helps.
        pitfalls: what goes wrong in practice.
        sources: who introduced it, with equation, algorithm or table.
        evidence: quality results, cited.
        orientation: one paragraph each under `en` and `es`.
        diagram: the data path, one step an entry; `+` added, `-` removed, `~` changed by it.
        metric: what it is judged on where that is not the case's own goal; it counts where the
            workload has it (training has no first token).
        module, experiment: dotted paths of its implementation and experiment, once they exist.
        parity: what the implementation was checked against and on what, each with its test files.
    """

    id: str
    name: str
    relieves: tuple[Bottleneck, ...]
    bottleneck: str
    apply: Callable[..., Case]
    is_present: Callable[[Case], bool]
    remove: Callable[[Case], Case] | None = None
    adoption: Adoption
    cost_of_adoption: str
    nothing_when: str
    pitfalls: tuple[str, ...]
    sources: tuple[Source, ...]
    evidence: tuple[Evidence, ...] = ()
    orientation: dict[str, str] = field(default_factory=dict, hash=False)
    diagram: tuple[str, ...] = ()
    metric: Metric | None = None
    module: str | None = None
    parity: tuple[str, ...] = ()
    experiment: str | None = None
    family: str = ""
