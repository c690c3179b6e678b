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

__all__ = ["task", "task_names"]


def task(name: str, **options: Any) -> Data:
    """The task `name`, built with `options`: the keyword arguments of its module's `build`.

    Raises:
        UnknownName: no such task, or the task has no such option.
    """
    build = _builder(name.replace("-", "_"))
    if build is None:
        raise unknown_name("task", name, task_names())
    known = inspect.signature(build).parameters
    for option in options:
        if option not in known:
            raise unknown_name(f"option of {name}", option, known)
    data: Data = build(**options)
    return data


def task_names() -> tuple[str, ...]:
    """Every task, sorted."""
    modules = sorted(found.name for found in pkgutil.iter_modules(__path__))
    return tuple(stem.replace("_", "-") for stem in modules if _builder(stem))


def _builder(stem: str) -> Callable[..., Data] | None:
    """The `build` of a module of this folder; None where there is no such module or function."""
    if stem.startswith("_") or stem not in {found.name for found in pkgutil.iter_modules(__path__)}:
        return None
    module = importlib.import_module(f"{__name__}.{stem}")
    found: Callable[..., Data] | None = getattr(module, "build", None)
    return found
