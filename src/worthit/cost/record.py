"""The record of `worthit cost`: one case's parameters, cache, FLOPs, memory, time and ledger."""

from __future__ import annotations

from typing import Any

import numpy as np

from worthit.cost.bottleneck import bottlenecks
from worthit.cost.clock import Array
from worthit.cost.evaluate import Cost, evaluate
from worthit.cost.ledger import Op, Pass, build
from worthit.cost.memory import Split, cache_bytes
from worthit.cost.params import count_params
from worthit.cost.serve import ServeCost
from worthit.cost.train import TrainCost
from worthit.spec.case import Case


def cost(case: Case) -> dict[str, Any]:
    """Cost `case` and return the record that `worthit cost --json` prints.

    Times are null where the case does not fit: out of memory comes before any latency.
    """
    found = evaluate(case)
    params = count_params(case.model)
    return {
        "schema": "worthit.cost/1",
        "case": case_json(found.case),
        "model": _model_json(case),
        "params": vars(params) | {},
        "cache": _cache_json(found),
        "flops": _flops_json(found),
        "memory": memory_json(found),
        "fit": fit_json(found),
        "time": _time_json(found),
        "money": _money_json(found),
        "bottlenecks": [b.to_json() for b in bottlenecks(found)],
        "warnings": list(case.warnings),
        "basis": {
            "device_efficiency": case.hardware.device.efficiency.source,
            "is_calibrated": case.hardware.device.efficiency.is_calibrated,
        },
        "ledger": ledger_json(found),
    }


def case_json(case: Case) -> dict[str, Any]:
    """A short form of the case: what was judged, as text and numbers."""
    from worthit.spec.codec import to_json

    record: dict[str, Any] = to_json(case)
    return record


def _model_json(case: Case) -> dict[str, Any]:
    from worthit.spec.codec import to_json

    record: dict[str, Any] = to_json(case.model)
    return record


def _first(value: Any) -> float:
    return float(np.ravel(value)[0])


def _cache_json(found: Cost) -> dict[str, Any]:
    model, context = found.model, found.work.context
    whole = Split()
    # Growth from one token to the next: while no window is full, and once every one is.
    first = cache_bytes(model, whole, 1.0).per_sequence
    none = cache_bytes(model, whole, 0.0).per_sequence
    far = 10.0 * max(model.context_len, context)
    beyond = (
        cache_bytes(model, whole, far + 1).per_sequence
        - cache_bytes(model, whole, far).per_sequence
    )
    return {
        "bytes_per_token": _first(first - none),
        "bytes_per_token_beyond_window": _first(beyond),
        "fixed_bytes_per_sequence": _first(none),
        "bytes_per_sequence": _first(cache_bytes(model, whole, float(context)).per_sequence),
    }


def _flops_json(found: Cost) -> dict[str, Any]:
    record: dict[str, Any] = dict.fromkeys(("decode_per_token", "prefill", "train_per_token"))
    if isinstance(found, ServeCost):
        record["decode_per_token"] = found.decode_flops_per_token
        record["prefill"] = found.prefill_flops
    else:
        record["train_per_token"] = found.flops_per_token
    return record


def memory_json(found: Cost) -> dict[str, Any]:
    """Bytes on one device, by what holds them."""
    if isinstance(found, ServeCost):
        weights, gradients, optimizer = found.weights_bytes, None, None
        cached: float | None = _first(found.cache_bytes_total)
    else:
        weights, gradients, optimizer = found.state
        cached = None
    return {
        "weights_bytes": _first(weights),
        "cache_bytes": cached,
        "activation_bytes": _first(found.activation_bytes),
        "optimizer_bytes": None if optimizer is None else _first(optimizer),
        "gradient_bytes": None if gradients is None else _first(gradients),
        "total_bytes": _first(found.total_bytes),
        "capacity_bytes": _first(found.capacity_bytes),
        "device_bytes": found.device.mem_bytes,
        "fits": bool(found.fits[0]),
    }


def fit_json(found: Cost) -> dict[str, Any]:
    """Whether the case fits, how it is split, and how many sequences run where not all do."""
    d = found.degrees
    layout = {
        name: _first(getattr(d, name))
        for name in ("tensor", "pipeline", "expert", "context", "replicas")
    }
    total, capacity = _first(found.total_bytes), _first(found.capacity_bytes)
    running = concurrency = None
    if isinstance(found, ServeCost):
        running, concurrency = _first(np.maximum(found.running, 0.0)), found.work.concurrency
    return {
        "fits": bool(found.fits[0]),
        "total_bytes": total,
        "capacity_bytes": capacity,
        "layout": layout,
        "zero": found.case.hardware.layout.zero,
        "running": running,
        "concurrency": concurrency,
    }


def interval(values: Array) -> dict[str, float] | None:
    """The middle and the bounds of a time `(scenarios, points)` at the case; None if impossible.

    Independent factors add in quadrature, in logarithms, as in the judge.
    """
    mid = float(values[0, 0])
    if not np.isfinite(mid):
        return None
    moves = np.log(values[1:, 0] / mid).reshape(-1, 2)
    up = float(np.sqrt((np.maximum(moves.max(axis=1), 0) ** 2).sum()))
    down = float(np.sqrt((np.maximum(-moves.min(axis=1), 0) ** 2).sum()))
    return {"mid": mid, "low": mid * float(np.exp(-down)), "high": mid * float(np.exp(up))}


def _time_json(found: Cost) -> dict[str, Any]:
    names = ("ttft_s", "tpot_s", "request_s", "tokens_per_s", "train_step_s", "train_total_s")
    times: dict[str, Any] = dict.fromkeys(names)
    if not bool(found.fits[0]):
        return times
    if isinstance(found, ServeCost):
        times["ttft_s"] = interval(found.ttft_s)
        times["tpot_s"] = interval(found.tpot_s)
        times["request_s"] = interval(found.request_s)
        times["tokens_per_s"] = interval(1 / found.s_per_token)
    else:
        times["train_step_s"] = interval(found.step_s)
        times["train_total_s"] = interval(found.train_total_s)
        times["tokens_per_s"] = interval(found.work.batch_tokens / found.step_s)
    return times


def _money_json(found: Cost) -> dict[str, Any] | None:
    """Dollars, where the device has a price: per million output tokens, or for the whole run."""
    price = found.device.price_usd_per_hour
    if price is None or not bool(found.fits[0]):
        return None
    per_second = price / 3600 * found.case.hardware.n_devices
    if isinstance(found, ServeCost):
        return {"usd_per_million_tokens": per_second * 1e6 * float(found.s_per_token[0, 0])}
    return {"usd_total": per_second * float(found.train_total_s[0, 0])}


def ledger_json(found: Cost) -> list[dict[str, Any]]:
    """Every operation of the case's passes, with its seconds and what binds it."""
    if isinstance(found, TrainCost):
        passes = [found.forward()]
    else:
        new = np.maximum(found.points.prompt - found.shared_tokens, 1.0)
        passes = [
            found.forward("prefill", batch=found.batch, new=new, past=found.shared_tokens),
            found.forward("decode", batch=found.batch, new=1.0, past=found.mean_context),
        ]
    rows = []
    for p in passes:
        for op in build(found.model, p):
            seconds, bound = _time_one(op, found, p)
            rows.append(
                {
                    "phase": p.phase,
                    "op": op.name,
                    "layer_kind": op.layer,
                    "count": _first(op.count),
                    "flops": _first(op.flops),
                    "bytes": _first(op.bytes),
                    "weight_bytes": _first(op.weights),
                    "cache_bytes": _first(op.cache),
                    "sent_bytes": _first(op.sent),
                    "dtype": op.math,
                    "time_s": seconds,
                    "bound": bound,
                }
            )
    return rows


def _time_one(op: Op, found: Cost, p: Pass) -> tuple[float, str]:
    """Seconds of all occurrences of one operation, and what binds it."""
    time = found.time([op], p)
    shares = {
        "compute": _first(time.causes["matmul-compute"] + time.causes["attention-compute"]),
        "communication": _first(time.causes["communication"]),
        "launch": _first(time.causes["launch-overhead"]),
    }
    total = _first(time.mid)
    shares["memory"] = total - sum(shares.values())
    return total, max(shares, key=lambda name: shares[name]) if total > 0 else "none"
