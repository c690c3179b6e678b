"""Frozen dataclasses that are cheap to define: there are many, and starts are many.

`dataclass` compiles six methods a class; of these `__eq__`, `__hash__` and `__repr__` are the same
for every class but for the fields, so one generic version of each is shared here. Behaviour is that
of `@dataclass(frozen=True)`, with `kw_only=True` for `record`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

C = TypeVar("C", bound=type)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def record(cls: C) -> C:
    """Make `cls` a frozen, keyword-only dataclass."""
    return _made(cls, is_keyword_only=True)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: C) -> C:
    """Make `cls` a frozen dataclass whose fields may be given in order."""
    return _made(cls, is_keyword_only=False)


def _made(cls: C, *, is_keyword_only: bool) -> C:
    made: Any = dataclass(frozen=True, kw_only=is_keyword_only, eq=False, repr=False)(cls)
    compared = [f.name for f in fields(made) if f.compare]
    hashed = [f.name for f in fields(made) if (f.compare if f.hash is None else f.hash)]
    made._compared = staticmethod(_getter(compared))
    made._hashed = staticmethod(_getter(hashed))
    made.__eq__, made.__hash__, made.__repr__ = _equal, _hash, _show
    return cls


def _getter(names: list[str]) -> Any:
    return attrgetter(*names) if names else lambda _: ()


def _equal(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return self is other or self._compared(self) == self._compared(other)


def _hash(self: Any) -> int:
    return hash(self._hashed(self))


def _show(self: Any) -> str:
    shown = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.repr)
    return f"{self.__class__.__qualname__}({shown})"
