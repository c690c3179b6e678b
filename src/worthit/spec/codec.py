"""Specs and cases to plain JSON types and back.

Written form: a dataclass is an object with one key a field; where one of several dataclasses may
stand, the object says which under `type` (mixers and feed-forwards, by the names of
`worthit.spec.model`) or `kind` (`serve`, `train`). Layers that repeat are written once:
`{"repeat": 32, "layer": {...}}`, or `"layers": [...]` for a pattern of several.

There is one builder and there are two ways to it. `from_json` checks data from outside first and
reports everything wrong at once; `from_trusted` reads what ships with the package, which tests
have checked, and costs no import of pydantic.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, TypeVar

from worthit.errors import InputError, SpecError, nearest, problem
from worthit.spec.case import Serving, Training
from worthit.spec.model import FFN_NAMES, MIXER_NAMES, Layer

__all__ = ["from_json", "from_trusted", "to_json"]

T = TypeVar("T")
Path = tuple[str | int, ...]

# How each member of a union says which one it is.
TAGS: dict[type, tuple[str, str]] = {
    **{cls: ("type", name) for cls, name in {**MIXER_NAMES, **FFN_NAMES}.items()},
    Serving: ("kind", "serve"),
    Training: ("kind", "train"),
}
# The longest pattern of layers looked for; the longest in use is Jamba's 8.
MAX_PATTERN = 16
# Characters of a wrong value that a message repeats.
MAX_SHOWN = 60


def to_json(value: Any) -> Any:
    """Write a spec, a case or a part of one as dicts, lists, text, numbers and nulls.

    >>> from worthit.spec.model import ChannelMix
    >>> to_json(ChannelMix(d_ff=64))
    {'type': 'channel-mix', 'd_ff': 64, 'has_receptance': True}
    """
    if is_dataclass(value) and not isinstance(value, type):
        tag = TAGS.get(type(value))
        written: dict[str, Any] = dict([tag]) if tag else {}
        for field in fields(value):
            inner = getattr(value, field.name)
            is_layers = isinstance(inner, tuple) and inner and isinstance(inner[0], Layer)
            written[field.name] = _write_layers(inner) if is_layers else to_json(inner)
        return written
    if isinstance(value, Mapping):
        return {key: to_json(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(inner) for inner in value]
    return value


def from_json(data: Any, cls: type[T], *, path: Path = (), where: str = "") -> T:
    """Read a `cls` from data of unknown origin.

    Args:
        data: what `to_json` wrote, or what a person did; fields with defaults may be left out.
        path: where `data` stands in its document, put before every problem.
        where: the document, such as a file name.

    Raises:
        SpecError: every wrong type, missing or unknown key and impossible value at once.
    """
    from worthit.spec._shape import check_shape

    misfits = check_shape(data, cls, path)
    builder = _Builder(avoid=[misfit.path for misfit in misfits if misfit.blocks])
    built = builder.build(cls, data, path)
    found = [*((misfit.path, misfit.message) for misfit in misfits), *builder.problems]
    if found:
        raise SpecError(*(problem(at, message) for at, message in found), context=where)
    assert isinstance(built, cls)
    return built


def from_trusted(data: Mapping[str, Any], cls: type[T]) -> T:
    """Read a `cls` from a file shipped with the package: built, not checked.

    Raises:
        SpecError: a value that the class itself refuses.
    """
    builder = _Builder()
    built = builder.build(cls, data, ())
    if builder.problems:
        raise SpecError(*(problem(at, message) for at, message in builder.problems))
    assert isinstance(built, cls)
    return built


class _Broken:
    """Stands for a value that could not be built; what holds it is not built either."""


_BROKEN = _Broken()


class _Builder:
    """Builds dataclasses bottom-up, collecting what they refuse with the path to it.

    `avoid` are paths already known to be wrong: what holds one is not built, all else is, so that
    one run finds every problem.
    """

    def __init__(self, avoid: Sequence[Path] = ()) -> None:
        self.avoid = {at[:n] for at in avoid for n in range(len(at) + 1)}
        self.problems: list[tuple[Path, str]] = []

    def build(self, hint: Any, data: Any, path: Path) -> Any:
        cls = member(hint, data)
        if cls is not None:
            return self._build_object(cls, data, path)
        item = item_hint(hint)
        if item is None or not isinstance(data, (list, tuple)):
            return _BROKEN if path in self.avoid else _as_declared(hint, data)
        if item is Layer:
            built = list(self._build_layers(data, path))
        else:
            built = [self.build(item, inner, (*path, i)) for i, inner in enumerate(data)]
        return _BROKEN if _BROKEN in built or path in self.avoid else tuple(built)

    def _build_object(self, cls: type, data: Any, path: Path) -> Any:
        if not isinstance(data, Mapping):
            return _BROKEN
        hints = hints_of(cls)
        built = {
            name: self.build(hints[name], inner, (*path, name))
            for name, inner in data.items()
            if name in hints
        }
        if path in self.avoid or any(inner is _BROKEN for inner in built.values()):
            return _BROKEN
        try:
            return cls(**built)
        except InputError as error:
            self.problems += [_locate(cls, path, message) for message in error.problems]
            return _BROKEN

    def _build_layers(self, data: Sequence[Any], path: Path) -> Iterator[Any]:
        for i, entry in enumerate(data):
            at = (*path, i)
            if not (isinstance(entry, Mapping) and "repeat" in entry):
                yield self.build(Layer, entry, at)
                continue
            if "layer" in entry:
                pattern = [self.build(Layer, entry["layer"], (*at, "layer"))]
            else:
                inner = entry.get("layers")
                inner = inner if isinstance(inner, list) else []
                pattern = list(self._build_layers(inner, (*at, "layers")))
            if at in self.avoid:
                yield _BROKEN
            else:
                yield from pattern * entry["repeat"]


def _as_declared(hint: Any, data: Any) -> Any:
    """A number in the type of its field: JSON has one kind of number, TOML asks for a point."""
    if type(data) is float and data.is_integer() and float not in options_of(hint):
        return int(data) if int in options_of(hint) else data
    if type(data) is int and float in options_of(hint) and int not in options_of(hint):
        return float(data)
    return data


# "n_heads must be positive, got 0": the field's name belongs to the path.
_NAMES_FIELD = re.compile(r"(?:\w+\.)?(\w+):? (must .*)", re.DOTALL)


def _locate(cls: type, path: Path, message: str) -> tuple[Path, str]:
    match = _NAMES_FIELD.fullmatch(message)
    if match and match[1] in hints_of(cls):
        return (*path, match[1]), match[2]
    return path, message


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """The resolved type of each field of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def required_of(cls: type) -> tuple[str, ...]:
    """The fields of a dataclass that have no default."""

    def is_required(field: Field[Any]) -> bool:
        return field.default is MISSING and field.default_factory is MISSING

    return tuple(field.name for field in fields(cls) if is_required(field))


def options_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    if isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.get_args(hint)
    return (hint,)


@cache
def classes_of(hint: Any) -> tuple[type, ...]:
    """The dataclasses that may stand where `hint` is declared."""
    return tuple(o for o in options_of(hint) if isinstance(o, type) and is_dataclass(o))


def member(hint: Any, data: Any) -> type | None:
    """The dataclass that `data` describes where `hint` is declared, or None."""
    classes = classes_of(hint)
    if len(classes) == 1:
        return None if data is None else classes[0]
    if isinstance(data, Mapping):
        for cls in classes:
            key, name = TAGS[cls]
            if data.get(key) == name:
                return cls
    return None


def item_hint(hint: Any) -> Any:
    """What the items of a tuple are (all alike), or None when `hint` is no tuple."""
    for option in options_of(hint):
        if typing.get_origin(option) is tuple:
            return typing.get_args(option)[0]
    return None


def length_hint(hint: Any) -> int | None:
    """How many items a tuple holds, or None where any number will do."""
    items = typing.get_args(hint)
    return None if Ellipsis in items or typing.get_origin(hint) is not tuple else len(items)


def _write_layers(layers: Sequence[Layer]) -> list[Any]:
    """Layers in order, runs and repeated patterns written once."""
    canonical: dict[Layer, int] = {}
    by_object = {id(layer): layer for layer in layers}
    number = {key: canonical.setdefault(layer, key) for key, layer in by_object.items()}
    ids = [number[id(layer)] for layer in layers]
    layer_of = {key: layer for layer, key in canonical.items()}

    written: list[Any] = []
    i = 0
    while i < len(ids):
        length, repeats = _best_pattern(ids, i)
        pattern = [to_json(layer_of[key]) for key in ids[i : i + length]]
        if repeats == 1:
            written += pattern
        elif length == 1:
            written.append({"repeat": repeats, "layer": pattern[0]})
        else:
            written.append({"repeat": repeats, "layers": pattern})
        i += length * repeats
    return written


def _best_pattern(ids: Sequence[int], start: int) -> tuple[int, int]:
    """The pattern at `start` that covers the most layers: its length and how often it comes."""
    best = (1, 1)
    for length in range(1, min(MAX_PATTERN, (len(ids) - start) // 2) + 1):
        pattern = ids[start : start + length]
        repeats = 1
        while ids[start + repeats * length : start + (repeats + 1) * length] == pattern:
            repeats += 1
        if repeats > 1 and length * repeats > best[0] * best[1]:
            best = (length, repeats)
    return best


def suggest(key: str, known: Sequence[str]) -> str:
    """The advice for a key that nobody knows."""
    near = nearest(key, known)
    advice = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
    return f"not a known key; {advice}"


def shown(value: Any) -> str:
    """A value as a message prints it: in the words of JSON, and not at length."""
    text = {None: "null", True: "true", False: "false"}.get(value) if _is_word(value) else None
    text = text or repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)
