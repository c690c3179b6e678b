"""Bottlenecks in words: which resource binds in this case, and with what share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from worthit.cost.evaluate import Cost
from worthit.cost.serve import ServeCost
from worthit.cost.train import TrainCost

# Shares below this are not worth a line.
SHOWN = 0.02

# What the share is a share of, and the sentence; `{share}` is filled in.
TITLES: dict[str, tuple[str, str]] = {
    "decode-weights": ("time", "reading the weights takes {share} of the time"),
    "decode-cache": ("time", "reading the cache of keys, values or states takes {share} of the time"),
    "attention-compute": ("time", "attention arithmetic takes {share} of the time"),
    "attention-traffic": ("time", "writing and reading score matrices takes {share} of the time"),
    "matmul-compute": ("time", "matrix products at the arithmetic limit take {share} of the time"),
    "elementwise-traffic": ("time", "moving activations takes {share} of the time"),
    "communication": ("time", "waiting for other devices takes {share} of the time"),
    "launch-overhead": ("time", "starting kernels takes {share} of the time"),
    "batch-idle": ("time", "slots that wait for others take {share} of the time"),
    "prefill-recompute": ("time", "prefilling the same prefix again takes {share} of the time"),
    "prefill-stall": ("wait", "a neighbour's prompt is {share} of the longest wait for a token"),
    "kv-capacity": ("requests", "{share} of the sequences wait because their cache does not fit"),
    "cache-reservation": ("memory", "cache that is reserved and not used is {share} of the memory"),
    "weight-capacity": ("memory", "{share} of the weights do not fit"),
    "optimizer-memory": ("memory", "optimizer states and gradients are {share} of the memory"),
    "activation-memory": ("memory", "activations are {share} of the memory"),
    "context-length": ("context", "{share} of the sequence lies beyond the trained context"),
    "quality": ("quality", "quality is not visible to a cost model"),
    "stability": ("quality", "training stability is not visible to a cost model"),
    "expert-imbalance": ("quality", "the balance of the experts is not visible to a cost model"),
}


@dataclass(frozen=True)
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


def statement(name: str, share: float) -> str:
    """The sentence for one bottleneck."""
    return TITLES[name][1].format(share=percent(share))


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
    steps = float(cost.points.output[0]) / float(cost.tokens_per_step[0])
    decode = float(cost.step.causes[name][0]) * steps
    return "decode" if decode >= float(cost.prefill.causes[name][0]) else "prefill"
