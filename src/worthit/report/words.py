"""Cases, costs and verdicts in words: what the terminal and the page say alike.

Draws the records of `worthit.cost` and the verdicts of `worthit.judge`; computes nothing.
"""

from __future__ import annotations

from typing import Any

from worthit.cost.bottleneck import percent
from worthit.cost.record import interval as bounds
from worthit.judge.judge import GOAL_METRIC, Judgement, Verdict
from worthit.judge.verdict import Flip
from worthit.judge.words import MOST, count, duration, size, three
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


def memory_line(memory: Record) -> str:
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
        parts.append(f"{mid} tokens/s [{low}-{high}]")
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
        return f"{mid.split()[0]} {unit} [{low.split()[0]}-{high.split()[0]}]"
    return f"{mid} [{low}-{high}]"


# Metrics that are not the time of the service say what they are about.
METRIC_LABELS = {
    "ttft_s": "ttft",
    "stall_s": "stall",
    "memory_bytes": "memory",
    "context_shortfall": "context",
}


def basis(judgement: Judgement) -> str:
    """What stands behind the numbers."""
    efficiency = judgement.case.hardware.device.efficiency
    if efficiency.is_calibrated:
        return f"formulas with efficiencies measured on this machine ({efficiency.source})"
    return f"formulas, not calibrated here; efficiencies: {efficiency.source}"


def param_counts(judgement: Judgement) -> tuple[float, float]:
    """Parameters in all, and those that one token meets."""
    from worthit.cost.params import count_params

    params = count_params(judgement.case.model)
    return float(params.total), float(params.active)


def times(judgement: Judgement) -> Record:
    """Every time of the case with its interval; nothing where it does not fit."""
    cost = judgement.cost
    if not bool(cost.fits[0]):
        return {}
    names = ("ttft_s", "tpot_s", "request_s", "train_total_s")
    found = {name: bounds(getattr(cost, name)) for name in names if hasattr(cost, name)}
    if hasattr(cost, "s_per_token"):
        found["tokens_per_s"] = bounds(1 / cost.s_per_token)
    if hasattr(cost, "step_s") and hasattr(cost, "train_total_s"):
        found["train_step_s"] = bounds(cost.step_s)
    return found


def rank(v: Verdict) -> tuple[int, bool, float, str]:
    """Sorting key: apply, defer, never; what is in place last of its kind; then by gain."""
    order = ("apply", "defer", "never").index(v.decision)
    return order, v.is_present, v.predicted.ratio if v.predicted else 1.0, v.technique.id


def goal_metric(judgement: Judgement) -> str:
    """The metric that is judged where a technique names none of its own."""
    return GOAL_METRIC[judgement.case.effective_goal]


def mark(v: Verdict) -> str:
    """Shape and word of a verdict; hollow and with `?` while only formulas stand behind it."""
    if v.is_present and v.decision == "apply":
        return "△ keep?" if v.evidence == "predicted" else "▲ keep"
    if v.decision == "apply":
        return "△ apply?" if v.evidence == "predicted" else "▲ apply"
    return "◆ defer" if v.decision == "defer" else "■ never"


def effect(v: Verdict, goal_metric: str) -> str:
    """The speed-up with its interval, and of what where that is not the case's own goal."""
    p = v.predicted
    if p is None:
        return "no number"
    label = METRIC_LABELS.get(p.metric, "") if p.metric != goal_metric else ""
    if p.before == p.after == float("inf"):
        return "does not fit"
    if p.ratio == 0:
        text = "makes it fit"
    elif p.ratio == float("inf"):
        text = "no longer fits"
    else:
        mid, low, high = (factor(value) for value in (p.ratio, p.high, p.low))
        text = f"{mid}x [{low}-{high}]" if low != high else f"{mid}x"
    return f"{text} {label}".rstrip()


def factor(ratio: float) -> str:
    """How many times better, to the precision at which the model means anything."""
    if ratio == 0:
        return "inf"
    value = 1 / ratio
    if value > MOST:
        return f">{MOST}"
    return f"{value:.2f}" if value < 10 else three(value)


def flip_text(flip: Flip) -> str:
    """`apply at prompt >= 32000`."""
    if isinstance(flip.value, str):
        return f"{flip.becomes} at {flip.axis.replace('_', ' ')} {flip.value}"
    sign = ">=" if flip.factor > 1 else "<="
    value = f"{flip.value:.2g}x" if flip.axis == "model size" else f"{flip.value:.0f}"
    return f"{flip.becomes} at {flip.axis} {sign} {value}"
