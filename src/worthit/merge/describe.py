"""A plan in words: which model gives what to which tensors, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from worthit.merge.members import split_name
from worthit.merge.methods import Parameter
from worthit.merge.output import n_bytes_of
from worthit.merge.plan import Job, Plan

# Values of one row before the middle ones are left out.
MAX_VALUES = 12


def plan_json(plan: Plan) -> dict[str, Any]:
    """The record of `worthit merge --plan --json`."""
    return {
        "schema": "worthit.merge-plan/1",
        "method": plan.recipe.method.id,
        "base_model": plan.recipe.base_model,
        "models": list(plan.recipe.models),
        "n_layers": plan.n_layers or plan.donor.n_layers,
        "n_bytes": sum(n_bytes_of(job) for job in plan.jobs),
        "warnings": list(plan.warnings),
        "tensors": [_job_json(job) for job in plan.jobs],
    }


def _job_json(job: Job) -> dict[str, Any]:
    return {
        "name": job.name,
        "shape": list(job.shape),
        "dtype": job.out_dtype,
        "inputs": [{"model": model, "tensor": tensor.name} for model, tensor in job.inputs],
        "base": job.base,
        "arguments": dict(job.arguments),
        "is_copied": job.is_copied,
        "is_vocabulary": job.is_vocabulary,
    }


def plan_lines(plan: Plan) -> Iterator[str]:
    """The same for people: a row for each parameter of each model, one value a layer."""
    recipe = plan.recipe
    n_bytes = sum(n_bytes_of(job) for job in plan.jobs)
    layers = plan.n_layers or plan.donor.n_layers
    yield f"{recipe.method.title}"
    yield f"{len(plan.jobs)} tensors, {layers} layers, {n_bytes / 1e9:.3g} GB"
    if recipe.base_model:
        yield f"base: {recipe.base_model}"
    if plan.tokens is not None:
        added = len(plan.tokens.added)
        yield f"tokens: {plan.tokens.alignment.n_rows} rows, {added} added to the tokenizer"
    if not recipe.is_whole:
        yield ""
        yield from _slice_lines(plan)
    yield ""
    rows = [row for p in recipe.method.parameters for row in _parameter_rows(plan, p)]
    heads = ("PARAMETER", "MODEL", "TENSORS")
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(3)]
    for row in [(*heads, "VALUE, ONE A LAYER WHERE IT CHANGES"), *rows]:
        left = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        yield f"{left}  {row[3]}"


def _slice_lines(plan: Plan) -> Iterator[str]:
    first = 0
    for piece in plan.recipe.slices:
        start, stop = piece.sources[0].layers or (0, 0)
        last = first + stop - start - 1
        sources = ", ".join(
            f"{s.model} {s.layers[0]}-{s.layers[1] - 1}" for s in piece.sources if s.layers
        )
        yield f"layers {first}-{last}: {sources}"
        first = last + 1


def _parameter_rows(plan: Plan, parameter: Parameter) -> Iterator[tuple[str, str, str, str]]:
    """Parameter, model, tensors and values; tensors that have the same values in one row."""
    by_model: dict[str, dict[str, list[Any]]] = {}
    for job in plan.jobs:
        if job.is_copied:
            continue
        value = job.arguments[parameter.argument]
        models = [m for m, _ in job.inputs if m != job.base]
        pairs = zip(models, value, strict=True) if parameter.is_per_model else [("all", value)]
        for model, number in pairs:
            by_model.setdefault(model, {}).setdefault(_kind(job.name), []).append(number)
    for model, kinds in by_model.items():
        groups: dict[str, list[str]] = {}
        for kind, values in kinds.items():
            groups.setdefault(_values(values), []).append(kind)
        for text, names in groups.items():
            if text != "None":
                yield parameter.name, model, _label(names, list(kinds)), text


def _kind(name: str) -> str:
    """A tensor's name without its layer: `mlp.up_proj`, or `norm` outside the layers."""
    parts = split_name(name)
    short = name.removeprefix("model.") if parts is None else f"layers.{parts[2]}"
    return short.removesuffix(".weight")


def _label(names: list[str], everything: list[str]) -> str:
    """Names in short: a family of them by what they begin with, where all of it is there.

    >>> everything = ["norm", "layers.mlp.up", "layers.mlp.down", "layers.attn.q"]
    >>> _label(["layers.mlp.up", "layers.mlp.down"], everything)
    'layers.mlp'
    >>> _label(everything[1:], everything), _label(everything, everything)
    ('layers', 'everywhere')
    """
    if len(names) == len(everything):
        return "everywhere"
    short: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        begins = [".".join(parts[: i + 1]) for i in range(len(parts))]
        whole = [b for b in begins if all(n in names for n in everything if _is_in(n, b))]
        short[whole[0]] = None
    return ", ".join(short)


def _is_in(name: str, family: str) -> bool:
    return name == family or name.startswith(f"{family}.")


def _values(values: list[Any]) -> str:
    shown = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in values]
    if len(set(shown)) == 1:
        return shown[0]
    if len(shown) > MAX_VALUES:
        half = MAX_VALUES // 2
        shown = [*shown[:half], "...", *shown[-half:]]
    return " ".join(shown)
