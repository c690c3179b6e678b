"""Bottlenecks in words: which resource binds in this case, and with what share."""

from __future__ import annotations

from typing import Any

import numpy as np

from worthit._record import value
from worthit.cost.evaluate import Cost
from worthit.cost.serve import ServeCost
from worthit.cost.train import TrainCost

# Shares below this are not worth a line.
SHOWN = 0.02

# What the share is a share of; the sentence, with `{share}`; and the sentence when it is zero.
TITLES: dict[str, tuple[str, str, str]] = {
    "decode-weights": (
        "time",
        "reading the weights takes {share} of the time",
        "reading the weights takes no time that counts",
    ),
    "decode-cache": (
        "time",
        "reading the cache of keys, values or states takes {share} of the time",
        "no cache of keys, values or states is read",
    ),
    "attention-compute": (
        "time",
        "attention arithmetic takes {share} of the time",
        "attention arithmetic is never what is waited for",
    ),
    "attention-traffic": (
        "time",
        "writing and reading score matrices takes {share} of the time",
        "no score matrix is written to memory",
    ),
    "matmul-compute": (
        "time",
        "matrix products at the arithmetic limit take {share} of the time",
        "no matrix product reaches the arithmetic limit",
    ),
    "elementwise-traffic": (
        "time",
        "moving activations takes {share} of the time",
        "moving activations takes no time that counts",
    ),
    "communication": (
        "time",
        "waiting for other devices takes {share} of the time",
        "nothing is sent between devices",
    ),
    "launch-overhead": (
        "time",
        "starting kernels takes {share} of the time",
        "starting kernels takes no time that counts",
    ),
    "batch-idle": (
        "time",
        "slots that wait for others take {share} of the time",
        "no slot waits for another",
    ),
    "prefill-recompute": (
        "time",
        "prefilling the same prefix again takes {share} of the time",
        "no prefix is prefilled twice",
    ),
    "prefill-stall": (
        "wait",
        "a neighbour's prompt is {share} of the longest wait for a token",
        "no neighbour's prompt stands in the way of a token",
    ),
    "kv-capacity": (
        "requests",
        "{share} of the sequences wait because their cache does not fit",
        "the cache of every sequence fits",
    ),
    "cache-reservation": (
        "memory",
        "cache that is reserved and not used is {share} of the memory",
        "no cache is reserved and left unused",
    ),
    "weight-capacity": (
        "memory",
        "{share} of the weights do not fit",
        "the weights fit",
    ),
    "optimizer-memory": (
        "memory",
        "optimizer states and gradients are {share} of the memory",
        "there are no optimizer states",
    ),
    "activation-memory": (
        "memory",
        "activations are {share} of the memory",
        "no activations are kept",
    ),
    "context-length": (
        "context",
        "{share} of the sequence lies beyond the trained context",
        "the whole sequence lies within the trained context",
    ),
    "quality": ("quality", "", "quality is not visible to a cost model"),
    "stability": ("quality", "", "training stability is not visible to a cost model"),
    "separate-skills": (
        "quality",
        "",
        "what merged weights still know is not visible to a cost model",
    ),
    "opacity": ("quality", "", "what activations mean is not visible to a cost model"),
    "control": ("quality", "", "whether behaviour follows is not visible to a cost model"),
    "preferences": ("quality", "", "which answers are preferred is not visible to a cost model"),
    "single-answer": ("quality", "", "what more answers are worth is not visible to a cost model"),
    "expert-imbalance": ("quality", "", "the balance of experts is not visible to a cost model"),
}


@value
class BoundBy:
    """One bottleneck of a case: its share of a resource, and the sentence that says so."""

    id: str
    phase: str
    share: float
    statement: str

    def to_json(self) -> dict[str, Any]:
        """The record's form."""
        return {
            "id": self.id,
            "phase": self.phase,
            "share": self.share,
            "statement": self.statement,
        }


def bottlenecks(cost: Cost) -> list[BoundBy]:
    """Every bottleneck of the case above `SHOWN`, the largest first."""
    found = []
    for name, shares in cost.shares.items():
        share = float(np.ravel(shares)[0])
        if np.isfinite(share) and share >= SHOWN:
            found.append(
                BoundBy(
                    id=name,
                    phase=_phase(cost, name),
                    share=share,
                    statement=statement(name, share),
                )
            )
    return sorted(found, key=lambda b: -b.share)


# What a share means where memory itself is judged.
IN_MEMORY = {
    "decode-cache": "the cache is {share} of the memory",
    "kv-capacity": "the cache is {share} of the memory",
    "decode-weights": "the weights are {share} of the memory",
    "weight-capacity": "the weights are {share} of the memory",
}


def statement(name: str, share: float, metric: str = "") -> str:
    """The sentence for one bottleneck, as a share of what `metric` measures."""
    _, some, none = TITLES[name]
    if metric == "memory_bytes":
        some = IN_MEMORY.get(name, some)
    if metric == "ttft_s":
        some = some.replace("of the time", "of the time to the first token")
    return some.format(share=percent(share)) if share > 0 else none


def percent(share: float) -> str:
    """A share as a reader wants it: no false precision, never 0 % for something that is there."""
    value = 100 * share
    if 0 < value < 0.1:
        return "under 0.1 %"
    return f"{value:.1f} %" if value < 10 else f"{value:.0f} %"


def _phase(cost: Cost, name: str) -> str:
    """Where most of a bottleneck's time is spent."""
    if isinstance(cost, TrainCost):
        return "training"
    assert isinstance(cost, ServeCost)
    if name not in cost.step.causes:
        return "memory" if TITLES[name][0] in ("memory", "requests") else "serving"
    steps = float(cost.said[0]) / float(cost.tokens_per_step[0])
    decode = float(cost.step.causes[name][0]) * steps
    return "decode" if decode >= float(cost.prefill.causes[name][0]) else "prefill"
