"""Finding a circuit: the fewest edges that still give the answer.

- `edge_attribution`: every edge's effect, by one gradient (Syed et al. 2023, "Attribution Patching
  Outperforms Automated Circuit Discovery", arXiv:2310.10348, equation 2):
  (other's sender - this run's sender) . d metric / d receiver's input
- `edge_effects`: the same by patching, exactly, one pass an edge
- `acdc`: from the output backwards, take away every edge whose loss costs less than a threshold
  (Conmy et al. 2023, "Towards Automated Circuit Discovery", arXiv:2304.14997, algorithm 1)
- `faithfulness`: which share of the metric's difference the circuit alone recovers

Patched edges carry the corrupt prompt (interchange), not zeros: the circuit explains a contrast.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from worthit.errors import InputError
from worthit.interp.graph import Edge, Graph, Sent
from worthit.interp.patch import Metric, _frozen


@dataclass(frozen=True)
class Contrast:
    """Two runs and a metric that tells them apart."""

    graph: Graph
    clean: Tensor
    corrupt: Tensor
    metric: Metric
    other: Sent
    top: float
    bottom: float

    def value(self, patched: Collection[Edge]) -> float:
        """The metric of the clean run while `patched` edges carry the corrupt one."""
        with torch.inference_mode():
            logits, _ = self.graph.run(self.clean, patched=patched, other=self.other)
            return float(self.metric(logits).mean())

    def share(self, patched: Collection[Edge]) -> float:
        """That, as a share: 1 is the clean run, 0 the corrupt one."""
        return (self.value(patched) - self.bottom) / (self.top - self.bottom)


def contrast(graph: Graph, clean: Tensor, corrupt: Tensor, metric: Metric) -> Contrast:
    """Run both prompts `(n_prompts, n)` once.

    Raises:
        InputError: shapes differ, or the metric does.
    """
    if clean.shape != corrupt.shape:
        raise InputError(
            f"prompts: must be as long, got {list(clean.shape)} and {list(corrupt.shape)}"
        )
    with torch.inference_mode():
        top, _ = graph.run(clean)
        bottom, other = graph.run(corrupt)
        ends = float(metric(top).mean()), float(metric(bottom).mean())
    if abs(ends[0] - ends[1]) < 1e-6:
        raise InputError(
            "prompts: the metric is the same for clean and corrupt; nothing to explain"
        )
    kept = {name: value.clone() for name, value in other.items()}
    return Contrast(graph, clean, corrupt, metric, kept, *ends)


def edge_attribution(c: Contrast) -> dict[Edge, float]:
    """The estimated loss of each edge, as a share: positive where it helps the clean answer."""
    graph, inputs = c.graph, {}

    def keep(name: str, x: Tensor) -> Tensor:
        x = x if x.requires_grad else x.detach().requires_grad_()
        x.retain_grad()
        inputs[name] = x
        return x

    with torch.enable_grad(), _frozen(graph.model):
        logits, sent = graph.run(c.clean, on_receive=keep)
        c.metric(logits).mean().backward()
    scores = {}
    for sender, receiver in graph.edges:
        gradient = inputs[receiver].grad
        change = ((c.other[sender] - sent[sender].detach()) * gradient).sum()
        scores[sender, receiver] = -float(change) / (c.top - c.bottom)
    return scores


def edge_effects(
    c: Contrast, *, on_progress: Callable[[int, int], None] | None = None
) -> dict[Edge, float]:
    """The loss of each edge as a share, exactly: one pass an edge."""
    scores = {}
    for i, edge in enumerate(c.graph.edges):
        scores[edge] = 1 - c.share([edge])
        if on_progress is not None:
            on_progress(i + 1, len(c.graph.edges))
    return scores


def best_edges(scores: dict[Edge, float], k: int) -> set[Edge]:
    """The k edges of the largest effect, whichever way it goes."""
    return set(sorted(scores, key=lambda edge: -abs(scores[edge]))[:k])


def faithfulness(c: Contrast, circuit: Collection[Edge]) -> float:
    """The share of the difference that `circuit` recovers with all other edges corrupt."""
    kept = set(circuit)
    return c.share([edge for edge in c.graph.edges if edge not in kept])


def acdc(c: Contrast, *, threshold: float) -> set[Edge]:
    """The edges that remain when those whose removal costs less than `threshold` are gone.

    Receivers from last to first; a sender that nobody listens to any more needs no edges, and is
    skipped with all that it receives.

    Args:
        threshold: of the share of the metric's difference.
    """
    kept = set(c.graph.edges)
    now = 1.0
    for receiver in reversed(c.graph.receivers):
        if receiver != "logits" and not _is_heard(c.graph, receiver, kept):
            kept -= {edge for edge in kept if edge[1] == receiver}
            continue
        # Late senders first, as the paper's reverse topological order.
        for edge in [e for e in reversed(c.graph.edges) if e[1] == receiver]:
            trial = kept - {edge}
            value = c.share([e for e in c.graph.edges if e not in trial])
            if abs(now - value) < threshold:
                kept, now = trial, value
    return kept


def _is_heard(graph: Graph, receiver: str, kept: Collection[Edge]) -> bool:
    """Whether anything reads what this receiver's part sends."""
    _, layer, kind, *place = receiver.split(".")
    if kind == "ffn":
        return any(sender == receiver for sender, _ in kept)
    heads = _heads_of(graph, int(layer), kind, int(place[0]))
    return any(sender in heads for sender, _ in kept)


def _heads_of(graph: Graph, layer: int, kind: str, place: int) -> set[str]:
    """The heads that a query, key or value belongs to."""
    a = graph.model.layers[layer].mixers[0].spec
    group = 1 if kind == "q" else a.n_heads // a.n_kv_heads
    return {f"layers.{layer}.head.{j}" for j in range(place * group, (place + 1) * group)}
