"""`worthit calibrate`: measure this machine."""

from __future__ import annotations

import importlib.util
from typing import Any

import click

from worthit.cli import _terminal
from worthit.errors import MissingCapability


@click.command("calibrate")
@click.option("--json", "is_json", is_flag=True, help="Print what was measured as JSON.")
def command(is_json: bool) -> None:
    """Measure this machine, so that `--on this` is exact.

    Takes about a minute; stopping it loses nothing.
    """
    if importlib.util.find_spec("worthit.calibrate") is None:
        raise MissingCapability("this version cannot calibrate", "pip install --upgrade worthit")
    module = importlib.import_module("worthit.calibrate")
    record: dict[str, Any] = module.calibrate()
    if is_json:
        _terminal.show_json(record)
    else:
        _terminal.show(module.lines(record))
