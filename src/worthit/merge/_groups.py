"""One line for tensors that differ in their numbers alone: a recipe has problems by the hundred."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def grouped(problems: Iterable[tuple[str, str]]) -> list[str]:
    """Names with what is wrong with them, in one line for each pattern of names.

    >>> grouped([("layers.0.w", "missing"), ("layers.1.w", "missing"), ("norm", "missing")])
    ['layers.{0-1}.w: missing (2 tensors)', 'norm: missing']
    """
    by_pattern: dict[tuple[str, str], list[list[int]]] = {}
    for name, message in problems:
        numbers = [int(n) for n in _NUMBER.findall(name)]
        by_pattern.setdefault((_NUMBER.sub("*", name), message), []).append(numbers)
    lines = []
    for (pattern, message), found in by_pattern.items():
        for column in zip(*found, strict=True):
            pattern = pattern.replace("*", _range(sorted(set(column))), 1)
        count = f" ({len(found)} tensors)" if len(found) > 1 else ""
        lines.append(f"{pattern}: {message}{count}")
    return lines


def _range(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    first, last = numbers[0], numbers[-1]
    if numbers == list(range(first, last + 1)):
        return f"{{{first}-{last}}}"
    return "{" + ",".join(map(str, numbers)) + "}"
