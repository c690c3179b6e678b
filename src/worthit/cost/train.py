"""Training: memory first, then one step, then the whole run.

A step is `batch_tokens` over the data-parallel replicas, in micro-batches; the backward pass costs
twice the forward one, recomputation adds part of another, and what cannot hide behind it of the
gradient traffic is waited for.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from worthit.cost.base import CaseCost
from worthit.cost.clock import LINK_EFFICIENCY, Array, Bools, PassTime, spread
from worthit.cost.ledger import Pass, build
from worthit.cost.memory import (
    GRADIENT_BYTES,
    logits_bytes,
    training_activation_bytes,
    training_state,
)
from worthit.cost.points import Points
from worthit.cost.serve import alone, total_flops
from worthit.spec.case import Case, Range, Training

# A run that lasts is slower than its kernels one by one: power limits, stragglers, data and
# collectives that do not overlap. The middle of 17 published runs (docs/accuracy.md): 0.55 to 0.66
# fully sharded on H100, 0.82 to 0.92 Megatron's on A100. It cancels in every ratio.
RUN_EFFICIENCY = 0.75
# A matrix product is done once forward and twice backward: for inputs and for weights.
BACKWARD_PASSES = 2.0
# Recomputed share of a forward pass: all of it, or what is cheap (Korthikanti et al. 2022 measure
# 2-7 % of a step for selective, 30-40 % for full).
RECOMPUTED = {"none": 0.0, "selective": 0.10, "full": 1.0}
# Memory traffic of an optimizer step: every state read and written, gradient read.
OPTIMIZER_TRIPS = 2.0


class TrainCost(CaseCost):
    """The cost of training `case`; times are infinite where it does not fit."""

    work: Training

    def __init__(self, case: Case, points: Points | None = None) -> None:
        assert isinstance(case.workload, Training)
        self.work = case.workload
        super().__init__(case, points)

    # Memory

    @cached_property
    def micro_tokens(self) -> Array:
        """Tokens of one micro-batch of one replica: at most what the step gives a replica."""
        each = self.points.batch_tokens / self.degrees.replicas
        return np.maximum(np.minimum(self.runtime.micro_batch * self.points.seq, each), 1.0)

    @cached_property
    def micro_steps(self) -> Array:
        """Micro-batches of one replica in a step."""
        each = self.points.batch_tokens / self.degrees.replicas
        return np.maximum(np.ceil(each / self.micro_tokens), 1.0)

    @cached_property
    def state(self) -> tuple[Array, Array, Array]:
        """Weights, gradients and optimizer states on one device."""
        p = self.points
        s = training_state(self.model, self.split, self.runtime, width=p.width, depth=p.depth)
        return spread(s.weights, p.n), spread(s.gradients, p.n), spread(s.optimizer, p.n)

    @cached_property
    def activation_bytes(self) -> Array:
        """Activations of the micro-batches that are in flight on one device."""
        p = self.points
        one = training_activation_bytes(
            self.model,
            self.split,
            self.runtime,
            tokens=self.micro_tokens,
            seq=p.seq,
            width=p.width,
            depth=p.depth,
        )
        # One forward, one backward: the first stage holds a micro-batch for each stage,
        # the last one holds one, and its logits.
        first = one * np.minimum(self.degrees.pipeline, self.micro_steps)
        last = one + logits_bytes(self.model, self.split, tokens=self.micro_tokens)
        return spread(np.maximum(first, last), p.n)

    @cached_property
    def total_bytes(self) -> Array:
        """Everything on one device."""
        weights, gradients, states = self.state
        return weights + gradients + states + self.activation_bytes

    @cached_property
    def fits(self) -> Bools:
        """Whether training fits."""
        fits: Bools = self.total_bytes <= self.capacity_bytes
        return fits

    # Time

    def forward(self) -> Pass:
        """The forward pass of one micro-batch on one device."""
        p, d = self.points, self.degrees
        return Pass(
            phase="train",
            # Context parallelism deals out the tokens of a sequence: here, sequences of a batch.
            batch=self.micro_tokens / p.seq / d.context,
            new=p.seq,
            past=0.0,
            width=p.width,
            depth=p.depth,
            tensor=d.tensor,
            expert=d.expert,
            is_fused=self.runtime.attention == "fused",
            is_compiled=self.is_compiled,
            precision=self.model.precision,
        )

    @cached_property
    def micro(self) -> PassTime:
        """Forward, backward and recomputation of one micro-batch on one pipeline stage."""
        d = self.degrees
        p = self.forward()
        time = self.time(build(self.model, p), p)
        recomputed = RECOMPUTED[self.runtime.recompute]
        return time.scaled((1.0 + BACKWARD_PASSES + recomputed) / d.pipeline)

    @cached_property
    def bubble(self) -> Array:
        """Share of a pipeline's time that is idle: (p - 1) / (m + p - 1)."""
        stages = self.degrees.pipeline
        return (stages - 1) / (self.micro_steps + stages - 1)

    @cached_property
    def optimizer_s(self) -> Array:
        """The optimizer's step: reading and writing every state, and its own arithmetic."""
        weights, gradients, states = self.state
        moved = OPTIMIZER_TRIPS * (weights + states) + gradients
        e = self.device.efficiency
        params = gradients / GRADIENT_BYTES
        flops = params * self.runtime.optimizer_flops_per_param
        arithmetic = flops / (self.device.peak("bf16") * e.gemm_compute)
        return moved / (self.device.mem_bytes_per_s * e.gemm_memory) + arithmetic

    @cached_property
    def gradient_s(self) -> Array:
        """Sending gradients (and, in ZeRO 3, weights) between replicas, before any overlap."""
        d, device = self.degrees, self.device
        replicas = d.replicas
        # Bytes as if nothing were divided over the replicas: what the collectives move.
        whole = self.state[1] * (replicas if self.split.zero >= 2 else 1.0)
        trips = 3.0 if self.split.zero >= 3 else 2.0
        sent = trips * whole * (replicas - 1) / replicas
        apart = self.points.devices > device.link_domain
        near = device.link_bytes_per_s or device.net_bytes_per_s or np.inf
        far = device.net_bytes_per_s or near
        rate = LINK_EFFICIENCY * np.where(apart, far, near)
        return np.where(replicas > 1, sent / rate, 0.0)

    @cached_property
    def exposed_s(self) -> Array:
        """What of the gradient traffic does not hide behind the backward pass."""
        behind = self.micro.mid * self.micro_steps * BACKWARD_PASSES / (1 + BACKWARD_PASSES)
        return np.maximum(self.gradient_s - behind, 0.0)

    @cached_property
    def step_s(self) -> Array:
        """Seconds of one step, `(scenarios, points)`; infinite where it does not fit."""
        compute = self.seconds(self.micro) * self.micro_steps / (1 - self.bubble)
        sending = self.factor("comm") * self.exposed_s
        updating = self.factor("elementwise") * self.optimizer_s
        kernels = compute + sending + updating
        return np.where(self.fits, kernels * self.factor("run") / RUN_EFFICIENCY, np.inf)

    @cached_property
    def train_total_s(self) -> Array:
        """Seconds to the same result: the tokens stated, or the share of them that suffices."""
        steps = self.work.tokens / self.points.batch_tokens
        needed = self.runtime.tokens_to_target or Range(mid=1.0, low=1.0, high=1.0)
        total: Array = self.step_s * steps * self.by_scenario(needed)[:, None]
        return total

    @cached_property
    def context_shortfall(self) -> Array:
        """How many times longer a sequence is than the context of the model."""
        return np.maximum(self.points.seq / self.model.context_len, 1.0)

    # Bottlenecks

    @cached_property
    def causes(self) -> dict[str, Array]:
        """Share of a step's time by bottleneck."""
        busy = self.micro_steps / (1 - self.bubble)
        total = self.micro.mid * busy + self.exposed_s + self.optimizer_s
        shares = {
            name: seconds * self.micro_steps / total for name, seconds in self.micro.causes.items()
        }
        shares["communication"] = shares["communication"] + self.exposed_s / total
        shares["elementwise-traffic"] = shares["elementwise-traffic"] + self.optimizer_s / total
        return shares

    @cached_property
    def shares(self) -> dict[str, Array]:
        """How much each bottleneck takes of its resource, between 0 and 1."""
        weights, gradients, states = self.state
        total = self.total_bytes
        zero = np.zeros(self.points.n)
        over = np.maximum(1 - self.capacity_bytes / total, 0.0)
        return self.causes | {
            "kv-capacity": zero,
            "cache-reservation": zero,
            "prefill-recompute": zero,
            "prefill-stall": zero,
            "batch-idle": self.bubble,
            "weight-capacity": np.where(weights > self.capacity_bytes, over, 0.0),
            "optimizer-memory": (states + gradients) / total,
            "activation-memory": self.activation_bytes / total,
            "context-length": 1 - 1 / self.context_shortfall,
        }

    def shares_of(self, metric: str) -> dict[str, Array]:
        """Shares of the resource that `metric` measures: a step's time, or a device's memory."""
        if metric == "memory_bytes":
            weights = self.state[0] / self.total_bytes
            return self.shares | {"decode-weights": weights, "weight-capacity": weights}
        return self.shares

    @cached_property
    def flops_per_token(self) -> float:
        """Model FLOPs per trained token, forward and backward, causal attention."""
        p = alone(self.forward())
        tokens = float(np.ravel(p.tokens)[0])
        return (1 + BACKWARD_PASSES) * total_flops(build(self.model, p)) / tokens
