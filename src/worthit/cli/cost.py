"""`worthit cost`: one case in numbers, without a judgement."""

from __future__ import annotations

from typing import Any

import click

from worthit.cli import _terminal
from worthit.cli._case import case_options, read_case


@click.command("cost")
@case_options()
@click.option(
    "--trace",
    is_flag=True,
    help="Only count it, by building it with transformers: for a type nobody knows.",
)
@click.option("--all", "is_full", is_flag=True, help="Every operation of the ledger.")
@click.option("--json", "is_json", is_flag=True, help="Print the record of worthit.cost(case).")
def command(target: str, trace: bool, is_full: bool, is_json: bool, **flags: Any) -> None:
    """Cost a case: parameters, cache, FLOPs, memory, time and the ledger.

    \b
    worthit cost deepseek-v3 --on h200:8 --prompt 100k --output 1000 --concurrency 16
    worthit cost ./config.json --on this
    """
    if trace:
        _show_trace(target, flags, is_json=is_json)
        return
    from worthit.cost.record import cost

    case = read_case(target, flags)
    record = cost(case)
    _terminal.warn(case.warnings)
    if is_json:
        _terminal.show_json(record)
        return
    from worthit.cli._cost_table import cost_lines

    _terminal.show(cost_lines(record, case, _terminal.of_stdout(), is_full=is_full))


def _show_trace(target: str, flags: dict[str, Any], *, is_json: bool) -> None:
    """What building the model shows; it cannot be costed further."""
    from worthit.spec.load import parse_hardware
    from worthit.spec.trace import trace

    given = [name for name, value in flags.items() if value is not None and name != "on"]
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        _terminal.warn([f"without effect on a traced model: {names}"])
    hardware = parse_hardware(flags["on"]) if flags.get("on") else None
    capacity_bytes = None if hardware is None else hardware.n_devices * hardware.device.mem_bytes
    traced = trace(target)
    if is_json:
        _terminal.show_json(traced.record(capacity_bytes))
    else:
        _terminal.show(traced.lines(capacity_bytes))
