"""Small steps that many records share: change the model, the runtime or the layout of a case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from worthit.cost.cache import layer_cache
from worthit.errors import NotApplicable
from worthit.spec.case import Case, Serving, Training
from worthit.spec.formats import format_of
from worthit.spec.model import Attention, Layer, ModelSpec


def with_model(case: Case, model: ModelSpec) -> Case:
    """`case` with another model."""
    return replace(case, model=model)


def with_runtime(case: Case, **changes: Any) -> Case:
    """`case` with some fields of its runtime changed."""
    return replace(case, runtime=replace(case.runtime, **changes))


def with_layout(case: Case, **changes: Any) -> Case:
    """`case` with some degrees of its layout changed."""
    layout = replace(case.hardware.layout, **changes)
    return replace(case, hardware=replace(case.hardware, layout=layout))


def with_precision(case: Case, **changes: Any) -> Case:
    """`case` with some number formats changed."""
    model = case.model
    return with_model(case, replace(model, precision=replace(model.precision, **changes)))


def map_attention(case: Case, change: Callable[[Attention], Any]) -> Case:
    """`case` with `change` applied to every softmax attention; other mixers stay."""
    return with_model(
        case,
        case.model.map_mixers(lambda m: change(m) if isinstance(m, Attention) else m),
    )


def attentions(case: Case) -> tuple[Attention, ...]:
    """The different softmax attentions of the model."""
    return tuple(m for m in case.model.mixers if isinstance(m, Attention))


def require_serving(case: Case, name: str) -> Serving:
    """The serving workload, or `NotApplicable` when the case trains."""
    if not isinstance(case.workload, Serving):
        raise NotApplicable(f"{name} acts when a model is served; this case trains one")
    return case.workload


def require_training(case: Case, name: str) -> Training:
    """The training workload, or `NotApplicable` when the case serves."""
    if not isinstance(case.workload, Training):
        raise NotApplicable(f"{name} acts when a model is trained; this case serves one")
    return case.workload


def change_layers(case: Case, change: Callable[[int, Layer], Layer]) -> Case:
    """`case` with `change(index, layer)` applied to every layer; equal results stay one object."""
    shared: dict[Layer, Layer] = {}
    layers = (change(index, layer) for index, layer in enumerate(case.model.layers))
    return with_model(
        case,
        replace(case.model, layers=tuple(shared.setdefault(x, x) for x in layers)),
    )


def require_growing_cache(case: Case, name: str) -> None:
    """Raise `NotApplicable` unless some layer's cache grows with the sequence."""
    model = case.model
    if not any(
        entry.per_token for layer, _ in model.layer_kinds for entry in layer_cache(layer, 1)
    ):
        kinds = ", ".join(dict.fromkeys(layer.kind for layer, _ in model.layer_kinds))
        raise NotApplicable(
            f"{name} acts on a cache that grows with the sequence; this model's layers ({kinds}) "
            "keep a fixed state"
        )


def require_narrower(name: str, part: str, now: str, then: str) -> None:
    """Raise `NotApplicable` unless format `then` saves a tenth or more of the bits of `now`."""
    bits_now, bits_then = format_of(now).bits, format_of(then).bits
    if bits_then > 0.9 * bits_now:
        raise NotApplicable(
            f"{name} would keep the {part} in {then} ({bits_then:.4g} bits), and it is in {now} "
            f"({bits_now:.4g} bits) already; start from 16 bits or choose a narrower format"
        )


def wide_format(case: Case) -> str:
    """The format that the case's numbers had before they were quantized: 16 bits or more."""
    activations = case.model.precision.activations
    return activations if format_of(activations).bits >= 16 else "bf16"
