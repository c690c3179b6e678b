"""Predicted beside published: writes docs/accuracy.md from benchmarks/accuracy/*.toml.

    python benchmarks/accuracy.py            write the page
    python benchmarks/accuracy.py --check    fail when the page is stale
    python benchmarks/accuracy.py --print    rows and errors on the terminal, nothing written

A row states what was published, by whom, how far a prediction may be off and why; `measure` names
the function below that predicts it. A row that misses its tolerance says so under `misses`, with
the reason, and the tests hold both kinds: rows without it must be within, rows with it outside.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from worthit.cost.cache import layer_cache
from worthit.cost.clock import time_pass
from worthit.cost.evaluate import evaluate
from worthit.cost.ledger import Op, Pass, build, matmul
from worthit.cost.memory import Split, cache_bytes, training_activation_bytes, training_state
from worthit.cost.ops import attend, ffn_ops
from worthit.cost.params import count_params
from worthit.cost.serve import ServeCost
from worthit.cost.train import TrainCost
from worthit.spec.case import (
    Case,
    Device,
    Hardware,
    Layout,
    Range,
    Runtime,
    Serving,
    Speculation,
    Training,
)
from worthit.spec.hf import from_config
from worthit.spec.load import load_device, load_preset
from worthit.spec.model import ModelSpec, MoE, Precision

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).resolve().parent / "accuracy"
PAGE = ROOT / "docs" / "accuracy.md"
SECTIONS = ("counts", "training", "speculation", "decode", "kernels", "serving", "training-runs")
KINDS = ("exact", "published", "measured")
HOURS = 3600.0

Measure = Callable[[dict[str, Any]], float]
MEASURES: dict[str, Measure] = {}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published number and how to predict it; `inputs` are the measure's."""

    id: str
    what: str
    measure: str
    value: float
    unit: str
    kind: str
    source: str
    tolerance: float
    reason: str
    inputs: dict[str, Any]
    note: str = ""
    misses: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One file of rows."""

    name: str
    title: str
    about: str
    rows: tuple[Row, ...]


def sections() -> tuple[Section, ...]:
    """Every section with its rows, in the order of the page."""
    return tuple(_read(name) for name in SECTIONS)


def _read(name: str) -> Section:
    data = tomllib.loads((DATA / f"{name}.toml").read_text(encoding="utf-8"))
    about, kinds = data["section"], data.get("kind", {})
    rows = []
    for stated in data["row"]:
        # A row's own fields win over those of its kind: source, tolerance and reason repeat often.
        merged = kinds.get(stated.get("like", ""), {}) | stated
        inputs = kinds.get(stated.get("like", ""), {}).get("inputs", {}) | stated.get("inputs", {})
        merged = {k: v for k, v in merged.items() if k not in ("like", "inputs")}
        rows.append(Row(**merged, inputs=inputs))
    return Section(name=name, title=about["title"], about=about["about"], rows=tuple(rows))


def predict(row: Row) -> float:
    """What the model says, in the row's unit."""
    return MEASURES[row.measure](row.inputs)


def error(row: Row) -> float:
    """Predicted over published, less one; infinite where the model says it does not fit."""
    predicted = predict(row)
    if row.value == 0:
        return 0.0 if predicted == 0 else float("inf")
    return predicted / row.value - 1


def measure(name: str) -> Callable[[Measure], Measure]:
    """Register a function as the way to predict rows that name it."""

    def register(function: Measure) -> Measure:
        MEASURES[name] = function
        return function

    return register


# Inputs to parts of a case


def model_of(inputs: dict[str, Any]) -> ModelSpec:
    """A preset by name, or a config.json in place; number formats may be set beside it."""
    given = inputs["model"]
    model = load_preset(given) if isinstance(given, str) else from_config(given)
    formats = {k: inputs[k] for k in ("weights", "cache", "activations", "operands") if k in inputs}
    if "table" in inputs:
        formats["embeddings"] = inputs["table"]
    # A published size is in 16 bits unless a row says otherwise, whatever the checkpoint is in.
    wide = dict.fromkeys(("weights", "embeddings", "activations", "cache"), "bf16")
    return replace(model, precision=Precision(**(wide | formats)))


def device_of(inputs: dict[str, Any]) -> Device:
    """A device by name, with some of its fields replaced where the measured one differed."""
    return replace(load_device(inputs["on"]), **inputs.get("device", {}))


def case_of(inputs: dict[str, Any]) -> Case:
    """The case that a row describes."""
    hardware = Hardware(
        device=device_of(inputs),
        n_devices=inputs.get("devices", 1),
        layout=Layout(**inputs.get("layout", {})),
    )
    work: Serving | Training
    if "seq" in inputs:
        work = Training(
            tokens=inputs.get("tokens", inputs["batch_tokens"]),
            seq=inputs["seq"],
            batch_tokens=inputs["batch_tokens"],
        )
    else:
        work = Serving(
            prompt=inputs["prompt"],
            output=inputs["output"],
            concurrency=inputs.get("concurrency", 1),
        )
    return Case(
        model=model_of(inputs),
        workload=work,
        hardware=hardware,
        runtime=Runtime(**inputs.get("runtime", {})),
    )


def served(inputs: dict[str, Any]) -> ServeCost:
    found = evaluate(case_of(inputs))
    assert isinstance(found, ServeCost)
    return found


def trained(inputs: dict[str, Any]) -> TrainCost:
    found = evaluate(case_of(inputs))
    assert isinstance(found, TrainCost)
    return found


def seconds(op: Op, device: Device, *, is_decode: bool) -> float:
    """One kernel on one device."""
    time = time_pass(
        [op], device, is_decode=is_decode, points=1, link_bytes_per_s=device.link_bytes_per_s or 1.0
    )
    return float(time.mid[0])


# Counts


@measure("parameters")
def _(inputs: dict[str, Any]) -> float:
    return float(count_params(model_of(inputs)).total)


@measure("active parameters")
def _(inputs: dict[str, Any]) -> float:
    return float(count_params(model_of(inputs)).active)


@measure("active parameters without embeddings")
def _(inputs: dict[str, Any]) -> float:
    return float(count_params(model_of(inputs)).active_without_embeddings)


@measure("active parameters without the input table")
def _(inputs: dict[str, Any]) -> float:
    params = count_params(model_of(inputs))
    return float(params.active - params.embedding)


@measure("cache bytes per token")
def _(inputs: dict[str, Any]) -> float:
    model = model_of(inputs)
    both = [float(cache_bytes(model, Split(), n).per_sequence) for n in (1.0, 2.0)]
    return both[1] - both[0]


@measure("cache bytes")
def _(inputs: dict[str, Any]) -> float:
    """At `context` tokens, convolutions and states excluded."""
    model = model_of(inputs)
    both = [float(cache_bytes(model, Split(), n).per_sequence) for n in (0.0, inputs["context"])]
    return both[1] - both[0]


@measure("state elements")
def _(inputs: dict[str, Any]) -> float:
    """Recurrent states; `with_inputs` adds what convolutions and token shifts remember."""
    model = model_of(inputs)
    kept = [(e, n) for layer, n in model.layer_kinds for e in layer_cache(layer, model.d_model)]
    with_inputs = inputs.get("with_inputs", False)
    return float(sum((e.fixed + (e.conv if with_inputs else 0)) * n for e, n in kept))


# FLOPs


def forward_flops_per_token(model: ModelSpec, seq: int) -> float:
    p = Pass(phase="train", batch=1.0, new=float(seq))
    return float(sum(op.flops * op.count for op in build(model, p))) / seq


@measure("forward FLOPs per token")
def _(inputs: dict[str, Any]) -> float:
    """Matrix products alone: recurrences are vector work that publishers leave out."""
    p = Pass(phase="train", batch=1.0, new=float(inputs.get("context", 1)))
    ops = [op for op in build(model_of(inputs), p) if op.kernel != "scan"]
    return float(sum(op.flops * op.count for op in ops)) / p.new


@measure("training FLOPs per token")
def _(inputs: dict[str, Any]) -> float:
    return 3 * forward_flops_per_token(model_of(inputs), inputs["context"])


@measure("6 N D")
def _(inputs: dict[str, Any]) -> float:
    return 6.0 * count_params(model_of(inputs)).total * inputs["tokens"]


@measure("TFLOP/s per device")
def _(inputs: dict[str, Any]) -> float:
    """FLOPs per token, by the ledger, times the published rate; `is_causal` false counts all."""
    per_token = 3 * forward_flops_per_token(model_of(inputs), inputs["context"])
    if not inputs.get("is_causal", True):
        p = Pass(phase="train", batch=1.0, new=float(inputs["context"]))
        attends = [op for op in build(model_of(inputs), p) if op.kernel == "attention"]
        causal = float(sum(op.flops * op.count for op in attends)) / p.new
        # Full square instead of the (S + 1) / 2 keys that a query sees on average.
        per_token += 3 * causal * (2 * p.new / (p.new + 1) - 1)
    return per_token * inputs["tokens_per_s"] / inputs["devices"] / 1e12


@measure("MFU")
def _(inputs: dict[str, Any]) -> float:
    rate = MEASURES["TFLOP/s per device"](inputs) * 1e12
    return rate / device_of(inputs).peak(inputs.get("math", "bf16"))


# Memory of training


@measure("activation bytes per layer, in s b h")
def _(inputs: dict[str, Any]) -> float:
    """Bytes that one more layer keeps, over tokens times width."""
    model = model_of(inputs)
    split = Split(
        tensor=float(inputs.get("tensor", 1)),
        has_sequence_parallel=inputs.get("has_sequence_parallel", False),
    )
    runtime = Runtime(**inputs.get("runtime", {}))
    kept = [
        float(
            training_activation_bytes(
                replace(model, layers=model.layers[:n]),
                split,
                runtime,
                tokens=float(inputs["context"]),
                seq=float(inputs["context"]),
            )
        )
        for n in (1, 2)
    ]
    return (kept[1] - kept[0]) / (inputs["context"] * model.d_model)


@measure("training state bytes")
def _(inputs: dict[str, Any]) -> float:
    """For `parameters` of them: weights, gradients and optimizer on one device."""
    model = model_of(inputs)
    split = Split(data=float(inputs["devices"]), zero=inputs["zero"])
    state = training_state(model, split, Runtime(**inputs.get("runtime", {})))
    each = (state.weights + state.gradients + state.optimizer) / count_params(model).total
    return float(each * inputs["parameters"])


# Speculative decoding


@measure("speculative speed-up")
def _(inputs: dict[str, Any]) -> float:
    """Tokens a step over what a step costs, drafting included: S = E[tokens] / (g c + 1)."""
    a = inputs["acceptance"]
    speculation = Speculation(
        draft_len=inputs["draft_len"], acceptance=Range(mid=a, low=a, high=a), draft_scale=0.1
    )
    case = case_of({"model": "llama-2-7b", "on": "h100", "prompt": 1, "output": 1})
    found = evaluate(replace(case, runtime=replace(case.runtime, speculation=speculation)))
    assert isinstance(found, ServeCost)
    tokens = float(np.ravel(found.tokens_per_step)[0])
    return tokens / (inputs["draft_len"] * inputs["draft_cost"] + 1)


# Serving


@measure("decode tokens per s")
def _(inputs: dict[str, Any]) -> float:
    """Of all sequences together, prefill left out."""
    found = served(inputs)
    return float(found.running[0] / found.tpot_s[0, 0])


@measure("output tokens per s")
def _(inputs: dict[str, Any]) -> float:
    """Of the whole service, prefill included; over `per` devices where the source divides."""
    return float(1 / served(inputs).s_per_token[0, 0]) / inputs.get("per", 1)


@measure("prefill tokens per s")
def _(inputs: dict[str, Any]) -> float:
    return float(inputs["prompt"] / served(inputs).ttft_s[0, 0])


@measure("time to first token, s")
def _(inputs: dict[str, Any]) -> float:
    return float(served(inputs).ttft_s[0, 0])


@measure("speculative decoding ratio")
def _(inputs: dict[str, Any]) -> float:
    """Speed with a draft model over speed without, whole decode."""
    speculation = dict(inputs["speculation"])
    speculation["acceptance"] = Range(**speculation["acceptance"])
    case = case_of(inputs)
    runtime = replace(case.runtime, speculation=Speculation(**speculation))
    both = [evaluate(c) for c in (case, replace(case, runtime=runtime))]
    rates = [float(1 / c.tpot_s[0, 0]) for c in both if isinstance(c, ServeCost)]
    return rates[1] / rates[0]


@measure("critical batch")
def _(inputs: dict[str, Any]) -> float:
    """Tokens at which a matrix product stops waiting for its weights, peaks alone."""
    device = device_of(inputs)
    precision = Precision(weights=inputs["weights"])
    op = matmul("product", Pass(phase="decode", batch=1.0, new=1.0, precision=precision), 1e4, 1e4)
    return float((op.weights / device.mem_bytes_per_s) / (op.flops / device.peak(op.math)))


@measure("expert-parallel bound, s")
def _(inputs: dict[str, Any]) -> float:
    """Sending alone: every token of a micro-batch to its experts and back, two micro-batches."""
    model = model_of(inputs)
    p = Pass(
        phase="decode",
        batch=float(inputs["concurrency"]),
        new=1.0,
        expert=float(inputs["expert"]),
        precision=model.precision,
    )
    sent = float(sum(op.sent * op.count for op in build(model, p)))
    return 2 * sent / inputs["bytes_per_s"]


# Kernels


@measure("GEMM, s")
def _(inputs: dict[str, Any]) -> float:
    precision = Precision(weights=inputs["weights"], operands=inputs.get("operands"))
    p = Pass(phase="prefill", batch=1.0, new=float(inputs["m"]), precision=precision)
    op = matmul("product", p, inputs["k"], inputs["n"])
    return seconds(op, device_of(inputs), is_decode=False)


@measure("decode attention, s")
def _(inputs: dict[str, Any]) -> float:
    precision = Precision(cache=inputs.get("cache", "bf16"))
    p = Pass(
        phase="decode",
        batch=float(inputs["batch"]),
        new=1.0,
        past=float(inputs["context"]) - 1,
        precision=precision,
    )
    width = inputs["head_dim"]
    op = attend(
        p,
        heads=inputs["n_heads"],
        d_qk=width,
        d_v=width,
        visible=p.visible(),
        cached=2 * inputs["n_kv_heads"] * width,
    )
    return seconds(op, device_of(inputs), is_decode=True)


@measure("MoE decode, s")
def _(inputs: dict[str, Any]) -> float:
    """Router and experts of one layer."""
    model = model_of(inputs)
    moe = next(f for f in model.ffns if isinstance(f, MoE))
    p = Pass(phase="decode", batch=float(inputs["batch"]), new=1.0, precision=model.precision)
    device = device_of(inputs)
    return sum(
        seconds(op, device, is_decode=True)
        for op in ffn_ops(moe, model.d_model, p)
        if op.kernel == "moe"
    )


# Training


@measure("training tokens per s per device")
def _(inputs: dict[str, Any]) -> float:
    found = trained(inputs)
    return float(found.work.batch_tokens / found.step_s[0, 0]) / inputs["devices"]


@measure("training step, s")
def _(inputs: dict[str, Any]) -> float:
    return float(trained(inputs).step_s[0, 0])


@measure("training step ratio")
def _(inputs: dict[str, Any]) -> float:
    """A step with the fields of `before` over one with those of `after`."""
    both = [
        float(trained({**inputs, **inputs[which]}).step_s[0, 0]) for which in ("before", "after")
    ]
    return both[0] / both[1]


@measure("device hours")
def _(inputs: dict[str, Any]) -> float:
    found = trained(inputs)
    return float(found.train_total_s[0, 0]) / HOURS * inputs["devices"]


@measure("training memory, bytes")
def _(inputs: dict[str, Any]) -> float:
    return float(trained(inputs).total_bytes[0])


# The page


def page() -> str:
    """The whole page."""
    lines = [
        "# How accurate the predictions are",
        "",
        "Generated by `make accuracy` from `benchmarks/accuracy/*.toml`; do not edit. Every row is",
        "a number that somebody published, beside what `worthit.cost` says of the same case.",
        "*exact*: counted by building the reference code; *published*: stated by the authors;",
        "*measured*: a public benchmark. Devices are not calibrated: their efficiencies come from",
        "public kernel tables, not from the rows they are compared with here, except where a",
        "section says so. Rows that miss their tolerance stay, marked and explained.",
        "",
        "| section | rows | median error | p90 error | outside tolerance |",
        "|---|---|---|---|---|",
    ]
    found = [(s, [(r, predict(r), error(r)) for r in s.rows]) for s in sections()]
    for section, rows in found:
        sizes = np.array([abs(e) for _, _, e in rows])
        finite = sizes[np.isfinite(sizes)]
        n_out = sum(abs(e) > r.tolerance for r, _, e in rows)
        anchor = section.title.lower().replace(" ", "-").replace(",", "")
        lines.append(
            f"| [{section.title}](#{anchor}) | {len(rows)} | {_percent(np.median(finite))} | "
            f"{_percent(np.percentile(finite, 90))} | {n_out} |"
        )
    for section, rows in found:
        lines += ["", f"## {section.title}", "", section.about.strip(), ""]
        lines += ["| what | predicted | published | error | tolerance | kind | source |"]
        lines += ["|---|---|---|---|---|---|---|"]
        lines += [_line(row, predicted, off) for row, predicted, off in rows]
        notes = [(row, off) for row, _, off in rows if row.note or row.misses]
        if notes:
            lines.append("")
        lines += [
            f"- **{row.what}** ({_signed(off)}): {' '.join((row.misses + ' ' + row.note).split())}"
            for row, off in notes
        ]
    lines += ["", "## What the tolerances mean", ""]
    reasons: dict[str, list[float]] = {}
    for section, _ in found:
        for row in section.rows:
            reasons.setdefault(row.reason, []).append(row.tolerance)
    lines += [f"- {_range(values)}: {reason}" for reason, values in reasons.items()]
    return "\n".join(lines) + "\n"


def _line(row: Row, predicted: float, off: float) -> str:
    mark = " **misses**" if abs(off) > row.tolerance else ""
    return (
        f"| {row.what} | {_number(predicted)} {row.unit} | {_number(row.value)} {row.unit} | "
        f"{_signed(off)}{mark} | {_percent(row.tolerance)} | {row.kind} | {row.source} |"
    )


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return _percent(low) if low == high else f"{_percent(low)} to {_percent(high)}"


def _number(value: float) -> str:
    if not np.isfinite(value):
        return "does not fit:"
    if value == int(value) and abs(value) >= 1000:
        return f"{int(value):,}"
    return f"{value:.4g}"


def _percent(share: float) -> str:
    return "0" if share == 0 else f"{100 * share:.2g} %"


def _signed(share: float) -> str:
    if not np.isfinite(share):
        return "no prediction"
    return "0" if abs(share) < 5e-7 else f"{100 * share:+.1f} %"


def rows() -> Iterator[Row]:
    """Every row of every section."""
    for section in sections():
        yield from section.rows


def main(arguments: list[str]) -> int:
    if "--print" in arguments:
        for row in rows():
            off = error(row)
            flag = "!" if (abs(off) > row.tolerance) != bool(row.misses) else " "
            got = _number(predict(row))
            print(f"{flag} {row.id:<44} {got:>16} {_number(row.value):>16} {_signed(off):>9}")
        return 0
    text = page()
    if "--check" in arguments:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            print(f"{PAGE.relative_to(ROOT)} is stale: run `make accuracy`")
            return 1
        return 0
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
