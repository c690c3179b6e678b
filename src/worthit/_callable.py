"""Make a package callable, so that `worthit.cost` is a package and `worthit.cost(case)` a call."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """A package whose call is the function that `__entry__` names, imported on the first call."""

    __entry__: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, _, name = self.__entry__.partition(":")
        return getattr(importlib.import_module(module), name)(*args, **kwargs)


def make_callable(package: str, entry: str) -> None:
    """Let `package(...)` call `entry`, a `module:function`."""
    module = sys.modules[package]
    module.__class__ = _CallablePackage
    module.__entry__ = entry  # type: ignore[attr-defined]  # declared on the class just set
