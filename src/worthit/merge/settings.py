"""What a recipe says of one parameter: a number, a gradient over the layers, or one a filter.

    density: 0.5                                  everywhere
    density: [0.2, 0.5, 0.8]                      0.2 in the first layer, 0.8 in the last, linear
    t: [{filter: self_attn, value: 0.3}, {value: 0.5}]     the first filter found in the name

Outside the layers (embeddings, last norm, head) a gradient has its first value, and where a slice
is one layer its last: that is how recipes were tuned with `mergekit`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from worthit._record import record
from worthit.errors import problem
from worthit.merge.methods import REQUIRED, Parameter
from worthit.spec.codec import shown, suggest

RESCALES = ("l1", "density")
Path = tuple[str | int, ...]


@record
class Condition:
    """One value, or one a point of the gradient, for the tensors whose name has `filter` in it."""

    values: tuple[Any, ...]
    filter: str | None = None

    def at(self, name: str, depth: float) -> Any:
        """The value for a tensor at `depth` (0 the first layer, 1 the last); None: not for it."""
        if self.filter not in (None, "*") and (not name or self.filter not in name):
            return None
        if len(self.values) == 1:
            return self.values[0]
        if not all(isinstance(v, float) for v in self.values):
            return self.values[int(depth * (len(self.values) - 1))]
        place = depth * (len(self.values) - 1)
        left = int(place)
        right = min(left + 1, len(self.values) - 1)
        share = place - left
        return (1 - share) * self.values[left] + share * self.values[right]


Setting = tuple[Condition, ...]
Settings = Mapping[str, Setting]


def resolve(parameter: Parameter, scopes: Iterable[Settings], *, name: str, depth: float) -> Any:
    """The value of `parameter` for one tensor, from the nearest scope that says one.

    Returns:
        `REQUIRED` where no scope has a value and there is no default.
    """
    for settings in scopes:
        for condition in settings.get(parameter.name, ()):
            value = condition.at(name, depth)
            if value is not None:
                return value
    return parameter.default


def read_settings(
    data: Any, known: Mapping[str, Parameter], others: Iterable[str], path: Path
) -> tuple[dict[str, Setting], list[str], list[str]]:
    """The settings in a `parameters:` table.

    Args:
        data: what the recipe has there.
        known: parameters of the method.
        others: parameters of other methods, which are left out with a warning.
        path: where the table stands.

    Returns:
        The settings, every problem, and warnings.
    """
    if data is None:
        return {}, [], []
    if not isinstance(data, Mapping):
        return {}, [problem(path, f"must be a table of parameters, got {shown(data)}")], []
    others = set(others)
    settings: dict[str, Setting] = {}
    problems: list[str] = []
    warnings: list[str] = []
    for key, value in data.items():
        at = (*path, str(key))
        if key in known:
            settings[key], found = _read_setting(value, known[key], at)
            problems += found
        elif key == "int8_mask":
            warnings.append(problem(at, "ignored: no mask is kept in memory here"))
        elif key in others:
            warnings.append(problem(at, "ignored: the method has no such parameter"))
        else:
            problems.append(problem(at, _suggest(str(key), known, others)))
    return settings, problems, warnings


def _suggest(key: str, known: Iterable[str], others: Iterable[str]) -> str:
    # A name of one letter is part of nearly every other, and likes none of them.
    return suggest(key, [name for name in [*known, *sorted(others)] if len(name) > 1])


def _read_setting(data: Any, parameter: Parameter, path: Path) -> tuple[Setting, list[str]]:
    if isinstance(data, Mapping):
        data = [data]
    if not (isinstance(data, list) and any(isinstance(entry, Mapping) for entry in data)):
        condition, problems = _read_condition(data, None, parameter, path)
        return (condition,), problems
    conditions = []
    problems = []
    for i, entry in enumerate(data):
        at = (*path, i)
        if not isinstance(entry, Mapping):
            message = f"must be a table among tables; write {{value: {shown(entry)}}}"
            problems.append(problem(at, message))
            continue
        problems += [
            problem((*at, str(k)), suggest(str(k), ("filter", "value")))
            for k in entry
            if k not in ("filter", "value")
        ]
        wanted = entry.get("filter")
        if wanted is not None and not isinstance(wanted, str):
            problems.append(problem((*at, "filter"), f"must be text, got {shown(wanted)}"))
            wanted = None
        if "value" not in entry:
            problems.append(problem((*at, "value"), "missing; give a number or a list of them"))
            continue
        condition, found = _read_condition(entry["value"], wanted, parameter, (*at, "value"))
        conditions.append(condition)
        problems += found
    return tuple(conditions), problems


def _read_condition(
    data: Any, wanted: str | None, parameter: Parameter, path: Path
) -> tuple[Condition, list[str]]:
    entries = data if isinstance(data, list) else [data]
    if not entries:
        return Condition(values=(0.0,)), [problem(path, "an empty list; give a value or several")]
    values: list[Any] = []
    problems = []
    for i, entry in enumerate(entries):
        value, message = _value(entry, parameter)
        values.append(value)
        if message:
            problems.append(problem((*path, i) if isinstance(data, list) else path, message))
    return Condition(values=tuple(values), filter=wanted), problems


def _value(data: Any, parameter: Parameter) -> tuple[Any, str]:
    """One value as the function takes it, and what is wrong with it."""
    if parameter.kind == "rescale":
        if isinstance(data, bool):
            return "l1" if data else "none", ""
        if data in RESCALES:
            return data, ""
        return "none", f"must be true, false, l1 or density, got {shown(data)}"
    if parameter.kind == "flag":
        if isinstance(data, bool):
            return data, ""
        return False, f"must be true or false, got {shown(data)}"
    number = _number(data)
    if number is None:
        return 0.0, f"must be a number, got {shown(data)}"
    if not math.isfinite(number):
        return 0.0, f"must be a finite number, got {number}"
    low, high = parameter.low, parameter.high
    if (low is not None and number < low) or (high is not None and number > high):
        return number, f"must lie between {low:g} and {high:g}, got {number:g}"
    return number, ""


def _number(data: Any) -> float | None:
    """YAML reads `1e-3` as text; people mean the number."""
    if isinstance(data, bool) or not isinstance(data, (int, float, str)):
        return None
    try:
        return float(data)
    except (ValueError, OverflowError):
        return None


__all__ = ["REQUIRED", "Condition", "Setting", "Settings", "read_settings", "resolve"]
