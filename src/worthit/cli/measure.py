"""`worthit measure`: an experiment, from its forecast to its outcome."""

from __future__ import annotations

import click

from worthit.cli import _terminal
from worthit.cli._case import Name
from worthit.errors import MeasurementInconclusive, MissingCapability


@click.command("measure")
@click.argument("name", metavar="EXPERIMENT|TECHNIQUE", type=Name("experiment", "EXPERIMENT"))
@click.option("--seeds", "n_seeds", type=int, metavar="N", help="In place of the budget's number.")
@click.option(
    "--budget",
    type=click.Choice(("smoke", "quick", "full")),
    default="quick",
    show_default=True,
    help="smoke takes under a minute, quick a few, full longer.",
)
@click.option(
    "--resume/--again",
    default=True,
    show_default=True,
    help="Continue a run of the same configuration, or start it over.",
)
@click.option("--out", metavar="DIR", help="Keep runs here; your data folder by default.")
@click.option("--threads", "n_threads", type=int, metavar="N", help="That torch may use.")
@click.option("--html", "page", metavar="FILE", help="Also write the report, one offline page.")
@click.option("--json", "is_json", is_flag=True, help="Print the outcome as JSON.")
@click.option(
    "--record", "is_recorded", is_flag=True, help="Also keep it in the scorecard of this checkout."
)
def command(
    name: str,
    n_seeds: int | None,
    budget: str,
    resume: bool,
    out: str | None,
    n_threads: int | None,
    page: str | None,
    is_json: bool,
    is_recorded: bool,
) -> int:
    """Measure a technique against its baseline, with several seeds, and decide.

    Says its cost before it starts; Ctrl-C is safe, and the same command continues. The exit code is
    4 where nothing could be decided.

    \b
    worthit measure topk-moe --budget smoke
    worthit measure mamba --html mamba.html
    """
    from worthit.scorecard.experiments import experiment_of

    ident = experiment_of(name)
    if page is not None:
        from worthit.report.write import check_target

        check_target(page)
    _need_lab()
    from worthit.lab.measure import measure

    try:
        outcome = measure(
            ident,
            budget=budget,
            n_seeds=n_seeds,
            out=out,
            n_threads=n_threads,
            is_continued=resume,
        )
    except KeyboardInterrupt:
        _terminal.note(
            "worthit: what was done is kept; the same command continues: " + _command_line()
        )
        raise
    if page is not None:
        from worthit.report.measured import write_outcome

        size = write_outcome(outcome, page)
        _terminal.note(f"wrote {page} ({size / 1e3:.0f} kB, opens offline)")
    if is_recorded:
        from worthit.scorecard.results import save

        _terminal.note(f"wrote {save(outcome)}")
    if is_json:
        _terminal.show_json(outcome)
    else:
        from worthit.cli._outcome_text import outcome_lines

        _terminal.show(outcome_lines(outcome, _terminal.of_stdout()))
    return MeasurementInconclusive.exit_code if outcome["state"] == "inconclusive" else 0


def _need_lab() -> None:
    import importlib.util

    if any(importlib.util.find_spec(package) is None for package in ("torch", "scipy")):
        raise MissingCapability("measuring needs the extra 'lab'", "pip install 'worthit[lab]'")


def _command_line() -> str:
    """What was typed, quoted so that a shell reads it again; started over only once."""
    import shlex
    import sys

    return shlex.join(["worthit", *(word for word in sys.argv[1:] if word != "--again")])
