"""Medians of the probes to the constants of the clock: t = max(F / (eF peak), B / (eB BW)) + t0.

A peak is the best rate that any product reached here, so that shares stay at or below 1; what a
datasheet promises does not enter. The share of compute is the median over products of all shapes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping

from worthit.calibrate._probes import Facts, Probe
from worthit.errors import MeasurementInconclusive
from worthit.spec.case import Device, Efficiency

# Rates that no machine of these years reaches, and rates that none falls below.
PLAUSIBLE_FLOPS_PER_S = (1e8, 1e16)
PLAUSIBLE_BYTES_PER_S = (1e8, 5e13)
LONGEST_LAUNCH_S = 5e-3
# One device sends nothing; a floor for the day that two of them do.
COMM_FLOOR_S = 1e-5
# Median over the 20th percentile: beyond this the machine did something else half of the time.
STEADY = 2.0
AGAIN = "close what runs beside it and run `worthit calibrate` again"


def fit(
    samples: Mapping[str, list[float]], probes: Iterable[Probe], facts: Facts, *, date: str
) -> Device:
    """The device that these samples show.

    Raises:
        MeasurementInconclusive: numbers that no machine produces, or that vary too much to mean
            anything.
    """
    probes = tuple(probes)
    check_steady(samples, probes)
    seconds = {probe.name: statistics.median(samples[probe.name]) for probe in probes}
    for name, median in seconds.items():
        if not (math.isfinite(median) and median > 0):
            raise MeasurementInconclusive(
                f"{name!r} took {median:.3g} s, which is no time; {AGAIN}"
            )
    of = {kind: [p for p in probes if p.kind == kind] for kind in {p.kind for p in probes}}

    launch = seconds[of["launch"][0].name]
    attend_launch = seconds[of["attend-launch"][0].name]

    def rate(probe: Probe, amount: float, start: float = 0.0) -> float:
        # A kernel shorter than an empty one is noise: what starting takes is then left in.
        busy = seconds[probe.name] - start
        return amount / (busy if busy > 0 else seconds[probe.name])

    peaks: dict[str, float | None] = dict.fromkeys(
        ("fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4")
    )
    for probe in of["gemm"]:
        peaks[probe.math] = max(peaks[probe.math] or 0.0, rate(probe, probe.flops, launch))
    shares = [rate(p, p.flops, launch) / (peaks[p.math] or 1.0) for p in of["gemm"]]

    streams = [rate(p, p.bytes, launch) for p in of["matvec"]]
    bandwidth = max(*streams, rate(of["copy"][0], of["copy"][0].bytes))
    # Bytes are bytes: a format whose kernels are slow here does not speak for the memory.
    memory = max(streams) / bandwidth
    decode = rate(of["decode"][0], of["decode"][0].bytes, attend_launch) / bandwidth
    prompt = of["prefill"][0]
    prefill = rate(prompt, prompt.flops, attend_launch) / (peaks[prompt.math] or 1.0)

    # In the clock a cached product moves at `memory` times the cache's rate.
    cached = max(rate(p, p.bytes, launch) for p in of["cached"]) / memory
    has_cache = facts.llc_bytes is not None and cached > bandwidth
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    device = Device(
        id="this",
        name=facts.name,
        kind=facts.kind,
        flops_per_s=peaks,
        mem_bytes_per_s=bandwidth,
        mem_bytes=facts.mem_bytes,
        llc_bytes=facts.llc_bytes if has_cache else None,
        llc_bytes_per_s=cached if has_cache else None,
        efficiency=Efficiency(
            gemm_compute=statistics.median(shares),
            gemm_memory=min(memory, 1.0),
            decode_attention_memory=min(decode, 1.0),
            prefill_attention_compute=min(prefill, 1.0),
            launch_s=launch,
            decode_attention_launch_s=attend_launch,
            comm_floor_s=COMM_FLOOR_S,
            source=f"measured by worthit calibrate, {date}",
            is_calibrated=True,
        ),
        source="measured by worthit calibrate",
        date=date,
        note=versions,
    )
    check_plausible(device)
    return device


def check_steady(samples: Mapping[str, list[float]], probes: Iterable[Probe]) -> None:
    """Raise unless the probes that everything rests on came out alike in every round."""
    for probe in probes:
        if probe.kind not in ("gemm", "matvec"):
            continue
        low, _ = spread(samples[probe.name])
        middle = statistics.median(samples[probe.name])
        if middle > STEADY * low:
            raise MeasurementInconclusive(
                f"this machine was busy: {probe.name!r} took {low:.3g} s at best and "
                f"{middle:.3g} s as a rule; " + AGAIN
            )


def spread(values: list[float]) -> tuple[float, float]:
    """The 20th and the 80th percentile, or the extremes of fewer than three."""
    if len(values) < 3:
        return min(values), max(values)
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return cuts[0], cuts[-1]


def check_plausible(device: Device) -> None:
    """Raise unless every number could belong to a machine: nothing else is stored."""
    e = device.efficiency
    rates = [(value, PLAUSIBLE_FLOPS_PER_S) for value in device.flops_per_s.values() if value]
    rates += [
        (value, PLAUSIBLE_BYTES_PER_S)
        for value in (device.mem_bytes_per_s, device.llc_bytes_per_s)
        if value
    ]
    shares = (
        e.gemm_compute,
        e.gemm_memory,
        e.decode_attention_memory,
        e.prefill_attention_compute,
    )
    launches = (e.launch_s, e.decode_attention_launch_s)
    is_plausible = (
        bool(rates)
        and all(low <= value <= high for value, (low, high) in rates)
        and all(0 < share <= 1 for share in shares)
        and all(0 < seconds <= LONGEST_LAUNCH_S for seconds in launches)
        and math.isfinite(device.mem_bytes)
        and device.mem_bytes > 0
    )
    if not is_plausible:
        raise MeasurementInconclusive(
            f"what was measured cannot be a machine, and is not kept (peaks "
            f"{[f'{v:.3g}' for v in device.flops_per_s.values() if v]} FLOP/s, memory "
            f"{device.mem_bytes_per_s:.3g} B/s, shares {[f'{s:.3g}' for s in shares]}, launches "
            f"{[f'{s:.3g}' for s in launches]} s); " + AGAIN
        )
