"""Seconds from a ledger: t = max(F / (eF peak), bytes / (eB bandwidth)) + t0, summed over kernels.

Efficiencies are intervals, one a kind of kernel. They are independent of one another and shared by
whatever is compared: an evaluation carries one *scenario* a bound, so that what two cases have in
common cancels in their ratio and only the difference is uncertain.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from worthit.cost.ledger import Number, Op
from worthit.spec.case import Device
from worthit.spec.formats import format_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Bools = NDArray[np.bool_]
    Ints = NDArray[np.int64]
else:
    # Names for annotations alone: numpy.typing costs a twentieth of the start.
    Array = Bools = Ints = np.ndarray

# Half-widths of the time of each kind of kernel, before calibration: median errors of this formula
# on public measured tables (docs/accuracy.md), rounded up to what a new device may show.
UNCERTAINTY: dict[str, float] = {
    "gemm": 0.15,
    "attention": 0.14,
    "moe": 0.12,
    "scan": 0.30,
    "elementwise": 0.25,
    "comm": 0.25,
    # 8-bit products and weight-only kernels, whose efficiencies were fitted; 4-bit ones were not.
    "quantized": 0.20,
    "narrow": 0.50,
    "launch": 0.30,
    # What a collective takes whatever its size: 5 to 20 us in measured tables, the middle 10.
    "floor": 1.00,
    # A whole training run beside the sum of its kernels; see `RUN_EFFICIENCY` in `train`.
    "run": 0.30,
}
FACTORS = tuple(UNCERTAINTY)
# What a measurement of this very machine leaves of the intervals of what it measures: calibration
# times no narrow formats, experts, scans, links or whole runs.
CALIBRATED_SHARE = 1 / 3
CALIBRATED = ("gemm", "attention", "elementwise", "launch")

# Achieved bytes/s of weight-only kernels, of what bf16 weights reach: fitted on gpt-fast's
# measured int8 and int4 decode, A100 (README of pytorch-labs/gpt-fast, 2023).
DEQUANTIZATION = {"int8": 0.77, "int4": 0.62, "fp8": 0.90, "fp4": 0.62}
# Share of the efficiency of 16-bit products that narrower ones reach, beside their higher peak: fp8
# 0.66 of it against 0.80 in measured H100 tables (ai-dynamo/aiconfigurator).
NARROW_COMPUTE = {"fp8": 0.82, "int8": 0.82, "fp4": 0.82}
# Scans and short recurrences run on vector units; share of their peak that they reach.
SCAN_COMPUTE = 0.5
# Links reach about this share of their one-way rate in large collectives.
LINK_EFFICIENCY = 0.8

STREAMS = ("weights", "cache", "scores", "other")
STREAM_BOTTLENECK = {
    "weights": "decode-weights",
    "cache": "decode-cache",
    "scores": "attention-traffic",
    "other": "elementwise-traffic",
}
# What `time_pass` reads of every operation; the streams stand last.
COLUMNS = ("flops", "sent", "launches", *STREAMS)
SCENARIOS = 1 + 2 * len(FACTORS)


def spread(value: Number, points: int) -> Array:
    """`value` at every point."""
    out: Array = np.zeros(points) + value
    return out


class PassTime:
    """Seconds of one pass by uncertainty factor (rows) and case (columns), layers and the rest.

    `causes` gives the same total by bottleneck at the middle of every interval; it is worked out
    when it is asked for, which is for few of the cases that are compared.
    """

    def __init__(
        self, layers: Array, around: Array, explain: Callable[[], dict[str, Array]]
    ) -> None:
        self.layers, self.around, self._explain = layers, around, explain

    @cached_property
    def causes(self) -> dict[str, Array]:
        """Seconds by bottleneck."""
        return self._explain()

    @cached_property
    def mid(self) -> Array:
        """Seconds at the middle of every interval, one a case."""
        total: Array = self.layers.sum(axis=0) + self.around.sum(axis=0)
        return total

    def scaled(self, share: Number) -> PassTime:
        """The same pass with every time multiplied."""
        return PassTime(self.layers * share, self.around * share, lambda: self._causes_times(share))

    def with_layers(self, share: float) -> PassTime:
        """The same pass through that share of the layers; what surrounds them stays."""
        layers = self.layers * share
        whole = layers.sum(axis=0) + self.around.sum(axis=0)
        return PassTime(layers, self.around, lambda: self._causes_times(whole / self.mid))

    def _causes_times(self, share: Number) -> dict[str, Array]:
        return {name: seconds * share for name, seconds in self.causes.items()}


def scenario_factors(is_calibrated: bool) -> Array:
    """Multipliers on time, `(factors, scenarios)`: all 1, then each factor low and high alone."""
    factors = np.ones((len(FACTORS), SCENARIOS))
    for i, name in enumerate(FACTORS):
        is_narrower = is_calibrated and name in CALIBRATED
        width = UNCERTAINTY[name] * (CALIBRATED_SHARE if is_narrower else 1.0)
        factors[i, 1 + 2 * i] = 1 / (1 + width)
        factors[i, 2 + 2 * i] = 1 + width
    return factors


def time_pass(
    ops: list[Op],
    device: Device,
    *,
    is_decode: bool,
    points: int,
    link_bytes_per_s: Number,
    working_set: Number | None = None,
) -> PassTime:
    """Time every operation of a pass on `device`, at each of `points` cases.

    `working_set` is what the pass touches again and again, in bytes; where it fits the last-level
    cache it moves at the cache's rate.
    """
    n = len(ops)
    # One row a column of the ledger, one line an operation, one entry a case.
    table = np.zeros((len(COLUMNS), n, points))
    count = np.empty((n, points))
    for i, op in enumerate(ops):
        for j, name in enumerate(COLUMNS):
            value = getattr(op, name)
            if type(value) is not float or value:
                table[j, i] = value
        count[i] = op.count
    flops, sent, launches, *streams = table
    # Kernels of one kind run at one rate and carry one uncertainty: few kinds, many kernels.
    kinds: dict[tuple[object, ...], tuple[float, float, float, int]] = {}
    rates = []
    for op in ops:
        kind = (op.kernel, op.math, op.storage, op.is_fused)
        if kind not in kinds:
            kinds[kind] = (*_rates(op, device, is_decode), _factor(op))
        rates.append(kinds[kind])
    compute, memory, launch, factor = np.array(rates).T[:, :, None]

    bandwidth: Number = device.mem_bytes_per_s
    if working_set is not None and device.llc_bytes and device.llc_bytes_per_s:
        fast = np.asarray(working_set) <= device.llc_bytes
        bandwidth = np.where(fast, device.llc_bytes_per_s, bandwidth)
    moved = table[-len(STREAMS) :].sum(axis=0)
    compute_s = flops / compute
    memory_s = moved / (memory * bandwidth)
    comm_s = sent / (LINK_EFFICIENCY * np.asarray(link_bytes_per_s))
    busy = (np.maximum(compute_s, memory_s) + comm_s) * count
    started = launches * launch * count

    carries = np.zeros((len(FACTORS), n))
    carries[factor[:, 0].astype(int), np.arange(n)] = 1.0
    around = np.array([op.is_around for op in ops])
    sends = np.array([op.kernel == "comm" for op in ops])
    starts = np.zeros((len(FACTORS), n))
    starts[np.where(sends, FACTORS.index("floor"), FACTORS.index("launch")), np.arange(n)] = 1.0
    totals = [(carries * part) @ busy + (starts * part) @ started for part in (~around, around)]

    def explain() -> dict[str, Array]:
        is_compute = compute_s > memory_s
        with np.errstate(divide="ignore", invalid="ignore"):
            per_byte = np.where(is_compute | (moved == 0), 0.0, busy / moved)
        causes = {
            bottleneck: (per_byte * stream).sum(axis=0)
            for bottleneck, stream in zip(STREAM_BOTTLENECK.values(), streams, strict=True)
        }
        attends = np.array([op.kernel == "attention" for op in ops])
        computing = np.where(is_compute, busy, 0.0)
        causes["attention-compute"] = attends @ computing
        causes["matmul-compute"] = ~attends @ computing
        causes["communication"] = sends @ (busy + started)
        causes["launch-overhead"] = ~sends @ started
        return causes

    return PassTime(totals[0], totals[1], explain)


def _rates(op: Op, device: Device, is_decode: bool) -> tuple[float, float, float]:
    """Achieved FLOP/s, share of the bandwidth, and seconds a launch costs."""
    e = device.efficiency
    if op.kernel == "comm":
        return 1.0, 1.0, e.comm_floor_s
    if op.math == "vector":
        # Outside the matrix units everything is fp32; where no figure is stated, an eighth of
        # the matrix peak is typical of accelerators.
        peak = device.flops_per_s.get("fp32") or device.peak("bf16") / 8
        return peak * SCAN_COMPUTE, e.gemm_memory, e.launch_s
    peak = device.peak(op.math)
    if op.kernel == "attention":
        memory = e.decode_attention_memory if is_decode else e.gemm_memory
        launch = e.decode_attention_launch_s if is_decode and op.is_fused else e.launch_s
        return peak * e.prefill_attention_compute, memory, launch
    memory = e.gemm_memory
    if op.storage:
        stored = format_of(op.storage).math
        if stored != op.math:
            memory *= DEQUANTIZATION.get(stored, 1.0)
    return peak * e.gemm_compute * NARROW_COMPUTE.get(op.math, 1.0), memory, e.launch_s


def _factor(op: Op) -> int:
    """Which uncertainty this operation's time carries."""
    if op.storage:
        stored = format_of(op.storage).math
        if stored in ("int4", "int8") and stored != op.math:
            return FACTORS.index("quantized")
        if op.math == "fp4" or stored == "fp4":
            return FACTORS.index("narrow")
        if op.math in ("fp8", "int8"):
            return FACTORS.index("quantized")
    return FACTORS.index(op.kernel)
