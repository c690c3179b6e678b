"""Matrices stored in fewer bits: the layers' own and, where they differ, the routed experts'."""

from __future__ import annotations

from collections.abc import Callable

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.spec.formats import format_of
from worthit.techniques._change import require_narrower, wide_format, with_precision


def with_weights(case: Case, name: str, format: str) -> Case:
    """`case` with whatever matrices are wider in `format`; what is as narrow already stays."""
    p = case.model.precision
    if p.experts is None:
        require_narrower(name, "weights", p.weights, format)
        return with_precision(case, weights=format)
    wider = {part: getattr(p, part) for part in ("weights", "experts")}
    changed = {}
    for part, now in wider.items():
        try:
            require_narrower(name, part, now, format)
        except NotApplicable:
            continue
        changed[part] = format
    if not changed:
        require_narrower(name, "experts", p.experts, format)
    return with_precision(case, **changed)


def any_weights(case: Case, is_kind: Callable[[str], bool]) -> bool:
    """Whether the layers' matrices or the routed experts' are in a format of that kind."""
    p = case.model.precision
    return is_kind(p.weights) or is_kind(p.of_experts)


def widened(case: Case, is_kind: Callable[[str], bool]) -> Case:
    """`case` with matrices of that kind in the format of the activations."""
    p = case.model.precision
    weights = wide_format(case) if is_kind(p.weights) else p.weights
    experts = wide_format(case) if is_kind(p.of_experts) else p.experts
    return with_precision(case, weights=weights, experts=None if experts == weights else experts)


def is_int8(name: str) -> bool:
    """Whether a format stores int8, in rows or groups."""
    return name.startswith("int8")


def is_4_bit(name: str) -> bool:
    """Whether a format stores about 4 bits, integer or floating."""
    return format_of(name).math in ("int4", "fp4")
