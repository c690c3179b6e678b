"""RLAIF: a model says which of two answers is better, and the policy learns from that.

Lee et al. 2023, "RLAIF vs. RLHF: Scaling Reinforcement Learning from Human Feedback with AI
Feedback", arXiv:2309.00267, section 2.1. The judge reads prompt and both answers, and its
probabilities of the tokens "1" and "2" are the label:

    P(a over b) = 1/2 [ p("1" | a first) + p("2" | b first) ],   p normalised over the two tokens

| paper | here |
|---|---|
| preamble, exemplar, sample to annotate, ending | `TEMPLATE` |
| position bias, averaged out over both orders | `Label.bias`: p("1" given a first) - P(a over b) |

Judges prefer a place as well as an answer: an order alone is worth nothing, and half the time a
weak judge only says where it stands. Both are always asked. What the averages say less surely than
`certainty` is left out rather than learned.

A judge must know better than the policy. With labels right in a share q, no more than q can be
learned from them: check q on pairs that you know, and take a judge that is right in 3 of 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from worthit.errors import InputError

TEMPLATE = """\
A good answer is {criterion}.

Given a request and two answers, say which answer is better.

Request: {prompt}

Answer 1: {first}

Answer 2: {second}

The better answer is answer """
CRITERION = "correct, helpful and to the point"
OPTIONS = ("1", "2")


class Judge(Protocol):
    """Says how likely each option is to come next."""

    def likelihoods(self, prompts: Sequence[str], options: Sequence[str]) -> list[list[float]]:
        """For each prompt the log-probability of each option as its continuation."""
        ...


@dataclass(frozen=True)
class Label:
    """What a judge said of two answers `a` and `b`.

    Attributes:
        a_is_better: P(a over b), both orders averaged.
        bias: how much a place at the front was worth, from -0.5 to 0.5.
        orders_agree: whether both orders preferred the same answer.
    """

    a_is_better: float
    bias: float
    orders_agree: bool

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Reliability:
    """A judge over many labels: what to look at before anything is learned from it."""

    n: int
    orders_agree: float
    mean_bias: float
    n_certain: int

    def sentence(self) -> str:
        """In words."""
        text = (
            f"{self.n} labelled: both orders agree in {100 * self.orders_agree:.0f} %, the first "
            f"place is worth {self.mean_bias:+.2f}; {self.n_certain} certain enough to learn from"
        )
        if self.orders_agree < 0.5:
            text += "; this judge answers by place: its labels are nearly chance"
        return text


def label(
    judge: Judge,
    prompts: Sequence[str],
    answers_a: Sequence[str],
    answers_b: Sequence[str],
    *,
    criterion: str | Sequence[str] = CRITERION,
    template: str = TEMPLATE,
    n_at_once: int = 8,
    on_labels: Callable[[int, int], None] | None = None,
) -> list[Label]:
    """Ask `judge` about every two answers, in both orders.

    Args:
        criterion: what a better answer is; one for all or one each.
        on_labels: called with how many are done, of how many.

    Raises:
        InputError: a template without one of its places.
    """
    check_template(template)
    n = len(prompts)
    each = [criterion] * n if isinstance(criterion, str) else list(criterion)
    found: list[Label] = []
    for start in range(0, n, n_at_once):
        part = range(start, min(start + n_at_once, n))
        asked = []
        for i in part:
            for first, second in ((answers_a[i], answers_b[i]), (answers_b[i], answers_a[i])):
                asked.append(
                    template.format(
                        criterion=each[i], prompt=prompts[i], first=first, second=second
                    )
                )
        said = judge.likelihoods(asked, OPTIONS)
        found += [both_orders(said[2 * k], said[2 * k + 1]) for k in range(len(part))]
        if on_labels is not None:
            on_labels(len(found), n)
    return found


def both_orders(a_first: Sequence[float], b_first: Sequence[float]) -> Label:
    """The label from the log-probabilities of "1" and "2" in each order."""
    front = _share(a_first)
    back = 1 - _share(b_first)
    a_is_better = (front + back) / 2
    return Label(
        a_is_better=a_is_better,
        bias=(front - back) / 2,
        orders_agree=(front > 0.5) == (back > 0.5) and front != 0.5 and back != 0.5,
    )


def is_certain(label: Label, certainty: float) -> bool:
    """Whether the average is at least `certainty` either way; a tie never is."""
    surer = max(label.a_is_better, 1 - label.a_is_better)
    return surer >= certainty and label.a_is_better != 0.5


def reliability(labels: Iterable[Label], *, certainty: float = 0.5) -> Reliability:
    """What labels have in common.

    Raises:
        InputError: there are none.
    """
    labels = list(labels)
    if not labels:
        raise InputError("no labels: nothing to look at")
    n = len(labels)
    return Reliability(
        n=n,
        orders_agree=sum(x.orders_agree for x in labels) / n,
        mean_bias=sum(x.bias for x in labels) / n,
        n_certain=sum(is_certain(x, certainty) for x in labels),
    )


def check_template(template: str) -> None:
    """Raise where a place is missing in a template."""
    missing = [p for p in ("{prompt}", "{first}", "{second}") if p not in template]
    if missing:
        raise InputError(f"template: must have {', '.join(missing)}")


def _share(logs: Sequence[float]) -> float:
    """p of the first of two, from log-probabilities, normalised over the two."""
    one, two = logs
    return 1 / (1 + math.exp(min(two - one, 700.0)))
