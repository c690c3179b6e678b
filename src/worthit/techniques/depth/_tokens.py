"""How many more tokens a cheaper model needs to the same loss: what training saves elsewhere.

A step that computes less also learns less. Between "no loss at the same number of tokens" and a
pessimistic bound that each record names, nobody knows until it is measured: an interval.
"""

from __future__ import annotations

from math import inf, sqrt

from worthit.spec.case import Case, Range, Training
from worthit.techniques._change import with_runtime
from worthit.techniques._record import Source

HOFFMANN_2022 = Source(
    cite="Hoffmann et al. 2022",
    title="Training Compute-Optimal Large Language Models",
    id="arXiv:2203.15556",
    where="equation 10",
)
# Exponents of parameters and of tokens in the loss E + A / N^alpha + B / D^beta.
ALPHA, BETA = 0.34, 0.28


def tokens_for_fewer_params(ratio: float) -> float:
    """How many times the tokens a model of 1 / `ratio` the parameters needs to the same loss.

    From a compute-optimal start, where alpha A / N^alpha = beta B / D^beta; infinite where no
    number of tokens is enough.
    """
    left = 1 - BETA / ALPHA * (ratio**ALPHA - 1)
    return left ** (-1 / BETA) if left > 0 else inf


def with_more_tokens(case: Case, most: float) -> Case:
    """`case` trained on 1 to `most` times the tokens; serving is left as it is."""
    if not isinstance(case.workload, Training):
        return case
    now = case.runtime.tokens_to_target or Range(mid=1.0, low=1.0, high=1.0)
    needed = Range(mid=now.mid * sqrt(most), low=now.low, high=now.high * most)
    return with_runtime(case, tokens_to_target=needed)


def with_fewer_tokens(case: Case, most: float) -> Case:
    """The reverse of `with_more_tokens`."""
    now = case.runtime.tokens_to_target
    if now is None or most == inf or not isinstance(case.workload, Training):
        return case
    if case.runtime.optimizer == "adamw":
        return with_runtime(case, tokens_to_target=None)
    mid, high = now.mid / sqrt(most), now.high / most
    return with_runtime(case, tokens_to_target=Range(mid=mid, low=min(now.low, mid), high=high))
