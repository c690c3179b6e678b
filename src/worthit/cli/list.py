"""`worthit list`: what ships, by kind."""

from __future__ import annotations

from typing import Any

import click

from worthit.cli import _terminal

KINDS = ("models", "devices", "techniques", "workloads", "experiments")


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--json", "is_json", is_flag=True, help="Print the entries as JSON.")
def command(kind: str, is_json: bool) -> None:
    """List models, devices, techniques, workloads or experiments.

    \b
    worthit list devices
    worthit list techniques --json
    """
    from worthit.report import records

    entries: list[dict[str, Any]] = getattr(records, kind)()
    if is_json:
        _terminal.show_json(entries)
        return
    from worthit.cli._list_table import list_lines

    _terminal.show(list_lines(kind, entries, _terminal.of_stdout()))
