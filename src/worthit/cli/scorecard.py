"""`worthit scorecard`: what was claimed, predicted and measured."""

from __future__ import annotations

import click

from worthit.cli import _terminal


@click.command("scorecard")
@click.option("--out", metavar="DIR", help="Read runs from here; your data folder by default.")
@click.option("--rebuild", is_flag=True, help="Make the index of runs anew from their folders.")
@click.option("--html", "page", metavar="FILE", help="Also write it as one offline page.")
@click.option("--json", "is_json", is_flag=True, help="Print the scorecard as JSON.")
def command(out: str | None, rebuild: bool, page: str | None, is_json: bool) -> None:
    """Show every technique: claimed, predicted, measured.

    Results that ship are joined by your own runs; the newest one stands.

    \b
    worthit scorecard
    worthit scorecard --json
    """
    from pathlib import Path

    from worthit.scorecard.index import rebuild as rebuild_index
    from worthit.scorecard.results import runs_home
    from worthit.scorecard.table import scorecard

    home = runs_home() if out is None else Path(out)
    if page is not None:
        from worthit.report.write import check_target

        check_target(page)
    if rebuild:
        n, skipped = rebuild_index(home)
        _terminal.note(f"{n} runs of {home} in the index")
        _terminal.warn(skipped)
    record = scorecard(home)
    if page is not None:
        from worthit.report.measured import write_scorecard

        size = write_scorecard(record, page)
        _terminal.note(f"wrote {page} ({size / 1e3:.0f} kB, opens offline)")
    if is_json:
        _terminal.show_json(record)
        return
    from worthit.cli._scorecard_text import scorecard_lines

    _terminal.show(scorecard_lines(record, _terminal.of_stdout()))
