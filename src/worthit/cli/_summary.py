"""A case and its cost in a few lines: what was judged, whether it fits, memory and times.

Draws the records of `worthit.cost`; `worthit judge` and `worthit cost` share it.
"""

from __future__ import annotations

from typing import Any

from worthit.cli._terminal import Terminal
from worthit.judge.bottleneck import percent
from worthit.judge.words import count, duration, size, three
from worthit.spec.case import Case, Serving

Record = dict[str, Any]
SEPARATOR = " · "


def case_line(case: Case, n_params: float, n_active: float) -> str:
    """Model, size, format, hardware, workload, stage, goal."""
    params = f"{count(n_params)} parameters"
    if n_active < 0.99 * n_params:
        params += f" ({count(n_active)} active)"
    precision = case.model.precision
    formats = precision.weights
    if precision.cache != precision.activations:
        formats += f", cache {precision.cache}"
    hardware = f"{case.hardware.n_devices}x {case.hardware.device.id}"
    return SEPARATOR.join(
        [
            case.model.name,
            params,
            formats,
            hardware,
            workload_text(case),
            f"stage {case.stage}",
            f"goal {case.effective_goal}",
        ]
    )


def workload_text(case: Case) -> str:
    """The workload's name where it has one, and its sizes."""
    work = case.workload
    if isinstance(work, Serving):
        sizes = f"prompt {work.prompt}, output {work.output}, concurrency {work.concurrency}"
    else:
        sizes = (
            f"train {count(work.tokens)} tokens, seq {work.seq}, "
            f"batch {count(work.batch_tokens)} tokens"
        )
    return f"{work.name}: {sizes}" if work.name else sizes


def layout_text(fit: Record) -> str:
    """How one replica is split over devices, where it is."""
    degrees = [
        f"{name} {degree:.0f}" for name, degree in fit["layout"].items() if degree and degree > 1
    ]
    if fit["zero"]:
        degrees.append(f"zero {fit['zero']}")
    return ", ".join(degrees)


def misfit_line(fit: Record) -> str | None:
    """What does not fit, or None where everything does."""
    if fit["fits"]:
        return None
    needs = (
        f"needs {size(fit['total_bytes'])} a device and {size(fit['capacity_bytes'])} are usable"
    )
    running, asked = fit["running"], fit["concurrency"]
    if running is not None and running >= 1:
        return (
            f"DOES NOT FIT: all {asked} sequences together: {needs}; {running:.0f} run at once, "
            "the others wait. Verdicts are about those that run."
        )
    return f"DOES NOT FIT: {needs}. Nothing runs, so no time is given."


def memory_line(memory: Record, terminal: Terminal) -> str:
    """What takes the memory of one device, and how much is left."""
    names = {
        "weights_bytes": "weights",
        "cache_bytes": "cache",
        "gradient_bytes": "gradients",
        "optimizer_bytes": "optimizer",
        "activation_bytes": "activations",
    }
    parts = SEPARATOR.join(
        f"{name} {size(memory[key])}" for key, name in names.items() if memory[key] is not None
    )
    share = memory["total_bytes"] / memory["capacity_bytes"]
    used = f"{size(memory['total_bytes'])} of {size(memory['capacity_bytes'])} usable"
    state = "fits" if memory["fits"] else "over"
    return f"{used} a device ({state}, {percent(share)}): {parts}"


def time_line(time: Record) -> str:
    """Every time of the case with its interval; empty where it does not fit."""
    names = {
        "ttft_s": "first token",
        "tpot_s": "then a token each",
        "request_s": "request",
        "train_step_s": "step",
        "train_total_s": "whole run",
    }
    parts = [f"{name} {interval(time[key])}" for key, name in names.items() if time.get(key)]
    rate = time.get("tokens_per_s")
    if rate:
        low, mid, high = (count(rate[key]) for key in ("low", "mid", "high"))
        parts.append(f"{mid} tokens/s [{low} - {high}]")
    return SEPARATOR.join(parts)


def money_text(money: Record | None) -> str:
    """Dollars, where the device has a price."""
    if not money:
        return ""
    if "usd_per_million_tokens" in money:
        return f"${three(money['usd_per_million_tokens'])} per million output tokens"
    return f"${count(money['usd_total'])} for the whole run"


def interval(value: Record) -> str:
    """A time with its bounds, the unit said once where all three share it."""
    low, mid, high = (duration(value[key]) for key in ("low", "mid", "high"))
    unit = mid.split()[-1]
    if low == mid == high:
        return mid
    if low.endswith(f" {unit}") and high.endswith(f" {unit}"):
        return f"{mid.split()[0]} {unit} [{low.split()[0]} - {high.split()[0]}]"
    return f"{mid} [{low} - {high}]"


def labelled(label: str, text: str, terminal: Terminal, *, width: int = 10) -> list[str]:
    """`label` in front of a paragraph that hangs beside it."""
    if not text:
        return []
    lines = terminal.wrap(text, indent=width)
    return [terminal.paint(label.ljust(width), "bold") + lines[0][width:], *lines[1:]]
