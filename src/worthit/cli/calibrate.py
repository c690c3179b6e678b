"""`worthit calibrate`: measure this machine."""

from __future__ import annotations

import click

from worthit.cli import _terminal


@click.command("calibrate")
@click.option("--quick", is_flag=True, help="Seconds in place of a minute, for a first look.")
@click.option("--json", "is_json", is_flag=True, help="Print what was measured as JSON.")
def command(quick: bool, is_json: bool) -> None:
    """Measure this machine, so that `--on this` is exact.

    Takes about a minute. Interrupted, it keeps what it has; the next run goes on from there.

    \b
    worthit calibrate
    worthit judge grammar-tutor --on this
    """
    from worthit.calibrate import calibrate, lines

    record = calibrate(quick=quick)
    if is_json:
        _terminal.show_json(record)
    else:
        _terminal.show(lines(record))
