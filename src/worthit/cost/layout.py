"""How a replica is split over devices, where the case leaves that open.

Serving with no stated tensor degree: the first of a few usual layouts whose memory holds all the
sequences asked for, or the one that holds most. Training: data-parallel replicas, nothing else.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from worthit._record import value
from worthit.cost.clock import Array
from worthit.cost.memory import Split, cache_bytes, weight_bytes
from worthit.cost.points import Points
from worthit.spec.case import Case, Layout, Serving
from worthit.spec.model import Attention, LatentAttention, Mamba2, ModelSpec, MoE


@value
class Degrees:
    """Degrees at every point; `replicas` is what they leave of the devices."""

    tensor: Array
    pipeline: Array
    expert: Array
    context: Array
    replicas: Array
    link_bytes_per_s: Array

    def split(self, layout: Layout) -> Split:
        """What the memory model divides by."""
        return Split(
            tensor=self.tensor,
            pipeline=self.pipeline,
            expert=self.expert,
            context=self.context,
            data=self.replicas,
            zero=layout.zero,
            has_sequence_parallel=layout.has_sequence_parallel,
        )


def choose(case: Case) -> Case:
    """Return `case` with its tensor degree decided; unchanged where it was stated."""
    layout = case.hardware.layout
    if layout.tensor is not None:
        return case
    n = case.hardware.n_devices // (layout.pipeline * layout.context)
    if n <= 1 or not isinstance(case.workload, Serving):
        return _with_layout(case, tensor=1)
    within = _even_degree(case.model, n, case.hardware.device.link_domain)
    candidates = [_with_layout(case, tensor=within)]
    has_moe = any(isinstance(f, MoE) for f in case.model.ffns)
    if has_moe and layout.expert == 1:
        # A latent cache is not divided by tensor parallelism: sequences are, and experts with them.
        has_latents = any(isinstance(m, LatentAttention) for m in case.model.mixers)
        experts = _with_layout(case, tensor=1, expert=min(n, case.hardware.device.link_domain))
        candidates.insert(0 if has_latents else 1, experts)
    room = [_sequences_that_fit(c) for c in candidates]
    for candidate, fits in zip(candidates, room, strict=True):
        if fits >= case.workload.concurrency * case.runtime.samples:
            return candidate
    return candidates[int(np.argmax(room))]


def _even_degree(model: ModelSpec, n: int, domain: int) -> int:
    """The most devices of one link domain that divide both `n` and every mixer's heads."""
    heads = [m.n_heads for m in model.mixers if isinstance(m, Attention | LatentAttention | Mamba2)]
    return max(
        d for d in range(1, min(n, domain) + 1) if n % d == 0 and all(h % d == 0 for h in heads)
    )


def _with_layout(case: Case, **degrees: int) -> Case:
    layout = replace(case.hardware.layout, **degrees)  # type: ignore[arg-type]  # int degrees only
    return replace(case, hardware=replace(case.hardware, layout=layout))


def _sequences_that_fit(case: Case) -> float:
    """Sequences whose caches fit beside the weights, over all replicas; a first estimate."""
    assert isinstance(case.workload, Serving)
    layout = case.hardware.layout
    tensor = layout.tensor or 1
    split = Split(
        tensor=tensor, pipeline=layout.pipeline, expert=layout.expert, context=layout.context
    )
    free = case.hardware.device.mem_bytes - weight_bytes(case.model, split)
    use = cache_bytes(case.model, split, case.workload.context)
    replicas = case.hardware.n_devices / (tensor * layout.pipeline * layout.context)
    if use.per_sequence <= 0:
        return float("inf") if free > 0 else 0.0
    return float(max(free, 0.0) / use.per_sequence * replicas)


def degrees(case: Case, points: Points) -> Degrees:
    """Degrees at every point: more devices first widen what is split, within a link domain.

    `case` must have its tensor degree decided (`choose`).
    """
    device, layout = case.hardware.device, case.hardware.layout
    tensor0 = layout.tensor or 1
    ratio = points.devices / case.hardware.n_devices
    domain = max(device.link_domain, tensor0, layout.expert)

    def grown(degree: int) -> Array:
        if degree == 1:
            return np.ones(points.n)
        return np.clip(degree * ratio, 1.0, domain)

    tensor, expert = grown(tensor0), grown(layout.expert)
    pipeline = np.minimum(float(layout.pipeline), points.devices)
    context = np.minimum(float(layout.context), points.devices)
    replicas = np.maximum(points.devices / (tensor * pipeline * context), 1.0)
    link = device.link_bytes_per_s or device.net_bytes_per_s or np.inf
    net = device.net_bytes_per_s or link
    group = np.maximum(tensor, expert)
    return Degrees(
        tensor=tensor,
        pipeline=pipeline,
        expert=expert,
        context=context,
        replicas=replicas,
        link_bytes_per_s=np.where(group > device.link_domain, net, link),
    )
