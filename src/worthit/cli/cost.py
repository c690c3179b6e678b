"""`worthit cost`: one case in numbers, without a judgement."""

from __future__ import annotations

from typing import Any

import click

from worthit.cli import _terminal
from worthit.cli._case import case_options, read_case


@click.command("cost")
@case_options()
@click.option(
    "--trace", is_flag=True, help="Count a model type nobody knows by building it without memory."
)
@click.option("--all", "is_full", is_flag=True, help="Every operation of the ledger.")
@click.option("--json", "is_json", is_flag=True, help="Print the record of worthit.cost(case).")
def command(target: str, trace: bool, is_full: bool, is_json: bool, **flags: Any) -> None:
    """Cost a case: parameters, cache, FLOPs, memory, time and the ledger.

    \b
    worthit cost deepseek-v3 --on h200:8 --prompt 100k --output 1000 --concurrency 16
    worthit cost ./config.json --on this
    """
    from worthit.cost.record import cost

    if trace:
        from worthit.spec.load import build_case
        from worthit.spec.trace import trace_model

        case = build_case(trace_model(target), **{k: v for k, v in flags.items() if v is not None})
    else:
        case = read_case(target, flags)
    record = cost(case)
    _terminal.warn(case.warnings)
    if is_json:
        _terminal.show_json(record)
        return
    from worthit.cli._cost_table import cost_lines

    _terminal.show(cost_lines(record, case, _terminal.of_stdout(), is_full=is_full))
