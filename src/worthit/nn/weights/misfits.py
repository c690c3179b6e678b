"""What does not fit between the tensors that a model has and those that files hold, in lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping


def misfits(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """What is missing, and what is there in another shape."""
    other: dict[str, list[str]] = {}
    for name, shape in expected.items():
        if name in found and found[name] != shape:
            what = f"expected the shape {list(shape)}, got {list(found[name])}"
            other.setdefault(what, []).append(name)
    return [
        *named((name for name in expected if name not in found), "missing"),
        *(line for what, names in other.items() for line in named(names, what)),
    ]


def named(names: Iterable[str], what: str) -> list[str]:
    """One line for names that differ in their numbers alone."""
    by_pattern: dict[str, list[list[int]]] = {}
    for name in names:
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
        numbers = [int(n) for n in re.findall(r"(?<=\.)\d+(?=\.|$)", name)]
        by_pattern.setdefault(pattern, []).append(numbers)
    lines = []
    for pattern, found in by_pattern.items():
        name = pattern
        for column in zip(*found, strict=True):
            name = name.replace("*", _range(sorted(set(column))), 1)
        count = f" ({len(found)} tensors)" if len(found) > 1 else ""
        lines.append(f"{name}: {what}{count}")
    return lines


def _range(numbers: list[int]) -> str:
    """`3`, `{0-7}` or `{0,2,4}`."""
    if len(numbers) == 1:
        return str(numbers[0])
    first, last = numbers[0], numbers[-1]
    if numbers == list(range(first, last + 1)):
        return f"{{{first}-{last}}}"
    return "{" + ",".join(map(str, numbers)) + "}"
