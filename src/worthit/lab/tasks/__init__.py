"""What models are trained and tested on: one task a file, found by walking this folder.

A task is a `worthit.train.batch.Data`, made by the `build` of its module:

    task("grammar-tutor", split="verb")

Every task is generated or read from what is on this machine already; nothing is downloaded. The
same options give the same data, and no split shares an example with another.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from worthit.errors import unknown_name
from worthit.train.batch import Data

__all__ = ["builder", "task", "task_names"]


def task(name: str, **options: Any) -> Data:
    """The task `name`, built with `options`: the keyword arguments of its module's `build`.

    Raises:
        UnknownName: no such task, or the task has no such option.
    """
    build = builder(name)
    if build is None:
        raise unknown_name("task", name, task_names())
    known = inspect.signature(build).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for option in options:
        if option not in known and not takes_any:
            raise unknown_name(f"option of {name}", option, known)
    data: Data = build(**options)
    return data


def task_names() -> tuple[str, ...]:
    """Every task, sorted."""
    return tuple(name for name in sorted(_modules()) if builder(name))


def builder(name: str) -> Callable[..., Data] | None:
    """The `build` of a task; None where there is no such task."""
    module = _modules().get(name.replace("_", "-"))
    if module is None:
        return None
    found: Callable[..., Data] | None = getattr(importlib.import_module(module), "build", None)
    return found


def _modules() -> dict[str, str]:
    """The modules of this folder that may hold a task, by the name the task would have."""
    stems = [found.name for found in pkgutil.iter_modules(__path__)]
    return {s.replace("_", "-"): f"{__name__}.{s}" for s in stems if not s.startswith("_")}
