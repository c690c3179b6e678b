"""`worthit doctor`: what works here, and what would get the rest."""

from __future__ import annotations

import click

from worthit.cli import _terminal


@click.command("doctor")
@click.option("--json", "is_json", is_flag=True, help="Print every check as JSON.")
def command(is_json: bool) -> int:
    """Say what is installed here, what is missing, and what gets it.

    The exit code is 1 when something is broken; a missing extra is no fault.
    """
    from worthit.doctor import doctor, lines

    record = doctor()
    if is_json:
        _terminal.show_json(record)
    else:
        _terminal.show(lines(record))
    return 1 if record["status"] == "problem" else 0
