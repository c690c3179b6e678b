"""What the verbs that look inside of a model share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from worthit.cli import _terminal
from worthit.errors import MissingCapability

POINT = click.option(
    "--point", metavar="NAME", help="Where, by name: layers.7.resid_post; in place of --layer."
)


def need_interp() -> None:
    """Raise `MissingCapability` where torch or scikit-learn is not installed."""
    try:
        import sklearn  # type: ignore[import-untyped,unused-ignore]  # noqa: F401 - only if it is there
        import torch  # noqa: F401 - only whether it is there
    except ImportError:
        raise MissingCapability(
            "looking inside of a model needs the extra 'interp'", "pip install 'worthit[interp]'"
        ) from None


def texts(name: str, *kinds: str) -> Any:
    """The set called `name`, of the first of `kinds` that has one; else the file of that name."""
    from worthit.interp.texts import Given
    from worthit.lab.tasks.sets import rows, set_names

    for kind in kinds:
        if name in set_names(kind) and not Path(name).exists():
            return Given(name, tuple(rows(name, kind)))
    return name


def share(value: float | None) -> str:
    """A share in [0, 1] for a table; a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"


def cautions(record: dict[str, Any]) -> None:
    """The cautions of a record, on stderr."""
    _terminal.warn(record.get("cautions", ()))
