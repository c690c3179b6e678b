"""Serving: memory first, then prefill, decode and speculation, then what a user waits for.

A service keeps `concurrency` sequences in flight. Those whose cache fits run; the rest wait. The
running ones are prefilled and then advance one step at a time. All quantities are arrays over the
points of the evaluation; times carry a first axis of scenarios (see `clock`), to which two are
added for numbers that depend on data (`Range`): its low and its high end.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from worthit.cost.base import DATA_SCENARIOS, CaseCost
from worthit.cost.clock import SCENARIOS, Array, Bools, PassTime, spread
from worthit.cost.ledger import Number, Op, Pass, Phase, build
from worthit.cost.memory import cache_bytes, serving_activation_bytes, weight_bytes
from worthit.cost.points import Points
from worthit.spec.case import Case, Range, Serving
from worthit.spec.formats import format_of

# How many standard deviations above the mean an engine reserves for outputs it cannot foresee.
RESERVED_DEVIATIONS = 3.0


class ServeCost(CaseCost):
    """The cost of serving `case`; times are infinite where not even one sequence fits."""

    work: Serving

    def __init__(self, case: Case, points: Points | None = None) -> None:
        assert isinstance(case.workload, Serving)
        self.work = case.workload
        super().__init__(case, points)

    @cached_property
    def sequences(self) -> Array:
        """Sequences asked for at once: every answer that is drawn for a request is one."""
        return self.points.concurrency * self.runtime.samples

    @cached_property
    def said(self) -> Array:
        """Tokens that one sequence says: with several rounds more than the output."""
        return self.points.output * self.runtime.rounds

    @cached_property
    def own_prompt(self) -> Array:
        """Prompt tokens that a sequence's cache holds: samples of a prompt share them out."""
        shared = self.shared_tokens
        own: Array = (self.points.prompt - shared) / self.runtime.samples + shared
        return own

    # Memory

    @cached_property
    def weights_bytes(self) -> Array:
        """Weights on one device, a draft's included."""
        p = self.points
        own = weight_bytes(self.model, self.split, width=p.width, depth=p.depth)
        draft: Number = 0.0
        if self.runtime.speculation is not None:
            s = self.runtime.speculation
            size = format_of(self.model.precision.weights).bytes
            draft = own * s.draft_scale + s.head_params * size / self.split.tensor
        return spread(own + draft, p.n)

    @cached_property
    def reserved_tokens(self) -> Array:
        """Tokens of cache set aside for one sequence.

        Without paging an engine must reserve what an output might reach; with pages it holds what
        is there, and a sequence is on average half-way through its output when others start.
        """
        if self.runtime.has_paging:
            return self.own_prompt + self.said
        return self.own_prompt + self.said * (1.0 + RESERVED_DEVIATIONS * self.work.output_spread)

    @cached_property
    def shared_tokens(self) -> Array:
        """Prompt tokens whose cache all sequences share: none without prefix caching."""
        share = self.work.shared_prefix if self.runtime.has_prefix_caching else 0.0
        return self.points.prompt * share

    @cached_property
    def _cache(self) -> tuple[Array, Array]:
        p = self.points
        draft = 0.0
        if self.runtime.speculation is not None:
            draft = self.runtime.speculation.draft_scale
        use = cache_bytes(
            self.model,
            self.split,
            self.reserved_tokens,
            runtime=self.runtime,
            shared_tokens=self.shared_tokens,
            width=p.width,
            depth=p.depth,
        )
        grown = 1.0 + draft
        return spread(use.per_sequence * grown, p.n), spread(use.shared * grown, p.n)

    @cached_property
    def sequence_bytes(self) -> Array:
        """Cache of one sequence on one device."""
        return self._cache[0]

    @cached_property
    def activation_bytes(self) -> Array:
        """Peak activations on one device."""
        p = self.points
        batch = np.maximum(p.concurrency / self.degrees.replicas, 1.0)
        peak = serving_activation_bytes(
            self.model, self.split, self.runtime, batch=batch, prompt=p.prompt, width=p.width
        )
        return spread(peak, p.n)

    @cached_property
    def room(self) -> Array:
        """Sequences whose cache fits, over all replicas; 0 where not even the weights do."""
        free = self.capacity_bytes - self.weights_bytes - self.activation_bytes - self._cache[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.where(self.sequence_bytes > 0, free / self.sequence_bytes, np.inf)
        each = np.where(free <= 0, 0.0, np.floor(each))
        # A replica is shared by several devices whose caches are divided alike.
        return each * self.degrees.replicas

    @cached_property
    def running(self) -> Array:
        """Sequences in flight at once: what was asked for, or what fits."""
        return np.minimum(self.sequences, self.room)

    @cached_property
    def fits(self) -> Bools:
        """Whether everything asked for fits."""
        fits: Bools = self.room >= self.sequences
        return fits

    @cached_property
    def cache_bytes_total(self) -> Array:
        """Cache of all sequences asked for, on one device."""
        each = np.maximum(self.sequences / self.degrees.replicas, 1.0)
        return self.sequence_bytes * each + self._cache[1]

    @cached_property
    def total_bytes(self) -> Array:
        """Everything asked for, on one device."""
        return self.weights_bytes + self.cache_bytes_total + self.activation_bytes

    # Time

    def forward(
        self, phase: Phase, *, batch: Number, new: Number, past: Number, size: float = 1.0
    ) -> Pass:
        """A pass of this model (or of one `size` times its parameters) on one device."""
        p, d = self.points, self.degrees
        return Pass(
            phase=phase,
            batch=batch,
            new=new,
            past=past,
            width=p.width * size ** (1 / 3),
            depth=p.depth * size ** (1 / 3),
            tensor=d.tensor,
            expert=d.expert,
            context=d.context,
            logits=1.0 if phase == "prefill" else None,
            is_fused=self.runtime.attention == "fused",
            is_compiled=self.is_compiled,
            kept_tokens=self.runtime.kept_tokens,
            precision=self.model.precision,
        )

    def ops(self, p: Pass) -> list[Op]:
        """The ledger of a pass."""
        return build(self.model, p)

    def timed(self, p: Pass) -> PassTime:
        """Seconds of a pass over all pipeline stages."""
        d = self.degrees
        working_set = self.weights_bytes + self.sequence_bytes * p.batch
        time = self.time(self.ops(p), p, working_set)
        if p.phase == "prefill" and np.any(d.pipeline > 1):
            # Sequences follow one another through the stages: (m + p - 1) / (m p) of the time.
            micro = np.maximum(p.batch, 1.0)
            return time.scaled((micro + d.pipeline - 1) / (micro * d.pipeline))
        return time

    @cached_property
    def batch(self) -> Array:
        """Running sequences on one replica."""
        return np.maximum(self.running / self.degrees.replicas, 1.0)

    @cached_property
    def prefill(self) -> PassTime:
        """Prefill of every running request of a replica."""
        new = np.maximum(self.points.prompt - self.shared_tokens, 1.0)
        batch = np.maximum(self.batch / self.runtime.samples, 1.0)
        return self.timed(self.forward("prefill", batch=batch, new=new, past=self.shared_tokens))

    @cached_property
    def first(self) -> PassTime:
        """Prefill of one sequence alone."""
        new = np.maximum(self.points.prompt - self.shared_tokens, 1.0)
        return self.timed(self.forward("prefill", batch=1.0, new=new, past=self.shared_tokens))

    @cached_property
    def mean_context(self) -> Array:
        """Tokens in the cache, averaged over the output."""
        return self.points.prompt + self.said / 2

    @cached_property
    def step(self) -> PassTime:
        """One decode step of a replica: one token a sequence, or the verification of a draft."""
        new = 1.0
        if self.runtime.speculation is not None:
            s = self.runtime.speculation
            new = 1.0 + s.draft_len * s.branches
        # Micro-batches follow one another through the stages; each step waits for all of them.
        batch = self.batch / np.minimum(self.degrees.pipeline, self.batch)
        time = self.timed(self.forward("decode", batch=batch, new=new, past=self.mean_context))
        if self.runtime.speculation is not None and self.runtime.speculation.draft_layers:
            # What the model's own first layers computed while drafting is not computed again.
            return time.with_layers(1 - self.runtime.speculation.draft_layers)
        return time

    @cached_property
    def draft(self) -> PassTime | None:
        """Drafting for one step, or None."""
        s = self.runtime.speculation
        if s is None or (s.draft_scale == s.draft_layers == s.head_params == 0):
            return None
        passes = 1.0 if s.is_parallel else float(s.draft_len)
        if s.head_params:
            return self._head_pass(s.head_params, passes)
        one = self.forward(
            "decode",
            batch=self.batch,
            new=1.0,
            past=self.mean_context,
            size=s.draft_scale or 1.0,
        )
        time = self.timed(one)
        if s.draft_layers:
            time = time.with_layers(s.draft_layers)
        return time.scaled(passes)

    def _head_pass(self, params: float, passes: float) -> PassTime:
        """Extra heads, read once a pass; two kernels each."""
        size = format_of(self.model.precision.weights)
        op = Op(
            name="draft heads",
            kernel="gemm",
            flops=2.0 * self.batch * params / self.degrees.tensor,
            weights=params * size.bytes / self.degrees.tensor,
            launches=2.0,
            storage=self.model.precision.weights,
            math="bf16" if self.model.precision.activations != "fp32" else "fp32",
        )
        one = self.forward("decode", batch=self.batch, new=1.0, past=0.0)
        return self.time([op], one).scaled(passes)

    def step_seconds(self) -> Array:
        """Seconds of the model's own share of a step; early exits shorten its layers.

        Sequences of a batch wait for the deepest: with mean depth m, about 1 - (1 - m)^batch of
        the layers run.
        """
        layers = self._factors.T @ self.step.layers
        exits = self.model.early_exit
        if exits is not None:
            depth = Range(mid=exits.mean_depth, low=exits.low, high=exits.high)
            layers = layers * (1 - (1 - self.by_scenario(depth)[:, None]) ** self.batch)
        total: Array = layers + self._factors.T @ self.step.around
        return total

    @cached_property
    def tokens_per_step(self) -> Array:
        """Tokens that one step yields for each sequence, by scenario: (1 - a^(g+1)) / (1 - a).

        Leviathan et al. 2022, arXiv:2211.17192, equation 1.
        """
        s = self.runtime.speculation
        if s is None:
            return np.ones(SCENARIOS + DATA_SCENARIOS)
        a = self.by_scenario(s.acceptance)
        kept: Array = (1 - a ** (s.draft_len + 1)) / (1 - a)
        return kept

    @cached_property
    def step_s(self) -> Array:
        """Seconds of one step, drafting included."""
        seconds = self.step_seconds()
        if self.draft is not None:
            seconds = seconds + self.seconds(self.draft)
        return seconds

    @cached_property
    def tpot_s(self) -> Array:
        """Seconds between two tokens of one sequence."""
        return self._unless_impossible(self.step_s / self.tokens_per_step[:, None])

    @cached_property
    def idle_factor(self) -> Array:
        """Steps that a static batch takes per useful step: it runs until its longest output ends.

        The expected maximum of n outputs with coefficient of variation c is about
        1 + c sqrt(2 ln n) means; a continuous batch refills a slot as soon as it is free.
        """
        if self.runtime.has_continuous_batching:
            return np.ones(self.points.n)
        deviations: Array = np.sqrt(2 * np.log(np.maximum(self.batch, 1.0)))
        return 1.0 + self.work.output_spread * deviations

    @cached_property
    def request_s(self) -> Array:
        """Seconds from the start of a batch to the end of its outputs."""
        decode = self.said * self.idle_factor * self.tpot_s
        return self.seconds(self.prefill) + decode

    @cached_property
    def s_per_token(self) -> Array:
        """Seconds of the whole service per output token: what both users and bills follow.

        What is said and not chosen, or said before the answer, is no output.
        """
        answered = self.running / self.runtime.samples * self.points.output
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._unless_impossible(self.request_s / answered)

    @cached_property
    def ttft_s(self) -> Array:
        """Seconds to the first token of a request that finds the service idle."""
        seconds = self.seconds(self.first)
        if self.runtime.prefill_chunk is not None:
            chunks = np.ceil(self.points.prompt / self.runtime.prefill_chunk) - 1
            others = np.where(self.points.concurrency > 1, chunks, 0.0)
            seconds = seconds + others * self.step_s
        return self._unless_impossible(seconds)

    @cached_property
    def stall_s(self) -> Array:
        """Longest wait between two tokens: a neighbour's prompt, or one chunk of it, and a step."""
        share: Number = 1.0
        if self.runtime.prefill_chunk is not None:
            share = np.minimum(self.runtime.prefill_chunk / self.points.prompt, 1.0)
        neighbour = np.where(self.points.concurrency > 1, share, 0.0)
        return self._unless_impossible(self.seconds(self.first) * neighbour + self.step_s)

    def _unless_impossible(self, seconds: Array) -> Array:
        return np.where(self.running >= 1, seconds, np.inf)

    @cached_property
    def context_shortfall(self) -> Array:
        """How many times longer a sequence gets than the context the model was trained for."""
        needed = self.points.prompt + self.said
        return np.maximum(needed / self.model.context_len, 1.0)

    # Bottlenecks

    @cached_property
    def causes(self) -> dict[str, Array]:
        """Share of the service's time by bottleneck, prefill and decode together."""
        steps = self.said * self.idle_factor / self.tokens_per_step[0]
        parts = [(self.prefill, 1.0), (self.step, steps)]
        if self.draft is not None:
            parts.append((self.draft, steps))
        total = sum(time.mid * weight for time, weight in parts)
        return {
            name: sum(time.causes[name] * weight for time, weight in parts) / total
            for name in self.step.causes
        }

    @cached_property
    def prefill_share(self) -> Array:
        """Share of the service's time that goes into prefill."""
        decode = self.said * self.idle_factor * self.step.mid / self.tokens_per_step[0]
        share: Array = self.prefill.mid / (self.prefill.mid + decode)
        return share

    @cached_property
    def shares(self) -> dict[str, Array]:
        """How much each bottleneck takes of its resource, between 0 and 1."""
        p = self.points
        waiting = np.where(
            self.weights_bytes < self.capacity_bytes, 1 - self.running / self.sequences, 0.0
        )
        used = self.own_prompt + self.said / 2
        unused = np.maximum(1 - used / self.reserved_tokens, 0.0)
        cached = self.cache_bytes_total / self.total_bytes
        stall = self.first.mid / (self.first.mid + self.step.mid)
        return self.causes | {
            "kv-capacity": waiting,
            "cache-reservation": unused * cached,
            "prefill-recompute": (self.work.shared_prefix * self.prefill_share)
            * (0.0 if self.runtime.has_prefix_caching else 1.0),
            "prefill-stall": np.where(p.concurrency > 1, stall, 0.0),
            "batch-idle": (1 - 1 / self.idle_factor) * (1 - self.prefill_share),
            "weight-capacity": np.maximum(1 - self.capacity_bytes / self.weights_bytes, 0.0),
            "context-length": 1 - 1 / self.context_shortfall,
            "optimizer-memory": np.zeros(p.n),
            "activation-memory": np.zeros(p.n),
        }

    def shares_of(self, metric: str) -> dict[str, Array]:
        """Shares of the resource that `metric` measures: the service's time, or a part of it."""
        if metric == "ttft_s":
            first = {name: s / self.first.mid for name, s in self.first.causes.items()}
            again = self.work.shared_prefix * (0.0 if self.runtime.has_prefix_caching else 1.0)
            return self.shares | first | {"prefill-recompute": np.full(self.points.n, again)}
        if metric == "memory_bytes":
            cached = self.cache_bytes_total / self.total_bytes
            weights = self.weights_bytes / self.total_bytes
            return self.shares | {
                "decode-cache": cached,
                "kv-capacity": cached,
                "decode-weights": weights,
                "weight-capacity": weights,
                "activation-memory": self.activation_bytes / self.total_bytes,
            }
        return self.shares

    @cached_property
    def decode_flops_per_token(self) -> float:
        """FLOPs of one decoded token at the case's mean context."""
        n = self.forward("decode", batch=1.0, new=1.0, past=float(self.mean_context[0]))
        return total_flops(build(self.model, alone(n)))

    @cached_property
    def prefill_flops(self) -> float:
        """FLOPs of one prompt."""
        n = self.forward("prefill", batch=1.0, new=float(self.points.prompt[0]), past=0.0)
        return total_flops(build(self.model, alone(n)))


def alone(p: Pass) -> Pass:
    """The same pass on one device that holds the whole model."""
    return replace(p, width=1.0, depth=1.0, tensor=1.0, expert=1.0, context=1.0)


def total_flops(ops: list[Op]) -> float:
    """FLOPs of all operations, at the case itself."""
    return float(sum(np.ravel(op.flops * op.count)[0] for op in ops))
