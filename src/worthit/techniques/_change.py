"""Small steps that many records share: change the model, the runtime or the layout of a case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from worthit.errors import NotApplicable
from worthit.spec.case import Case, Serving, Training
from worthit.spec.model import Attention, ModelSpec


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


def require_attention(case: Case, name: str) -> tuple[Attention, ...]:
    """The model's softmax attentions, or `NotApplicable` when it has none."""
    found = attentions(case)
    if not found:
        kinds = ", ".join(dict.fromkeys(layer.kind for layer, _ in case.model.layer_kinds))
        raise NotApplicable(f"{name} changes softmax attention; this model's layers are {kinds}")
    return found


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
