"""`worthit patch`: which activations carry the difference between two prompts."""

from __future__ import annotations

from typing import Any, Literal

import click

from worthit.cli import _terminal
from worthit.cli._case import Name
from worthit.cli._inside import need_interp, texts
from worthit.cli._progress import Progress


@click.command("patch")
@click.argument("model", metavar="MODEL", type=Name("model", "MODEL", is_path=True))
@click.argument("data", metavar="PROMPTS.jsonl", type=click.Path())
@click.option(
    "--point",
    "points",
    multiple=True,
    metavar="NAME",
    help="What to patch, * for any; default: layers.*.resid_pre.",
)
@click.option("--noising", is_flag=True, help="Put the corrupt into the clean run: what is needed.")
@click.option("--estimate", is_flag=True, help="By one gradient (attribution), not a pass each.")
@click.option("--json", "is_json", is_flag=True, help="Print one record, with every effect.")
def command(
    model: str,
    data: str,
    points: tuple[str, ...],
    noising: bool,
    estimate: bool,
    is_json: bool,
) -> None:
    """Patch activations of one prompt into another, and see which bring its answer back.

    PROMPTS has a line each: {"clean": ..., "corrupt": ..., "right": ..., "wrong": ...}, prompts of
    as many tokens with their answers. An effect of 1 brings the other answer back entirely.

    \b
    worthit patch smollm2-135m-instruct capitals.jsonl
    worthit patch smollm2-135m-instruct capitals.jsonl --point "layers.*.heads" --estimate
    """
    need_interp()
    from worthit.interp import run

    subject = run.load(model)
    kind: Literal["noising", "denoising"] = "noising" if noising else "denoising"
    found = run.patched(
        subject,
        texts(data, "prompts"),
        points=points or ("layers.*.resid_pre",),
        kind=kind,
        is_estimate=estimate,
        on_work=Progress(),
    )
    record = {"schema": "worthit.patch/1", "model": model, "data": data, **found}
    if is_json:
        _terminal.show_json(record)
        return
    _terminal.show(line for pair in record["pairs"] for line in _lines(pair))


def _lines(pair: dict[str, Any]) -> list[str]:
    terminal = _terminal.of_stdout()
    lines = [
        terminal.paint(terminal.plain(f"{pair['clean']} -> {pair['right']}"), "bold"),
        terminal.plain(f"{pair['corrupt']} -> {pair['wrong']}"),
        f"logit difference {pair['clean_metric']:.2f} clean, "
        f"{pair['corrupt_metric']:.2f} corrupt; {pair['kind']}, {pair['n_passes']} passes",
    ]
    for row in pair["strongest"]:
        position, *head = row["place"]
        token = terminal.plain(repr(pair["tokens"][position]))
        where = f"{row['point']}" + (f" head {head[0]}" if head else "")
        lines.append(f"  {row['effect']:+.2f}  {where:28} at {position} {token}")
    return [*lines, ""]
