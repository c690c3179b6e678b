"""`worthit probe`: what a model's layers know of labelled texts, or of its own errors."""

from __future__ import annotations

from typing import Any, Literal

import click

from worthit.cli import _terminal
from worthit.cli._case import Name, Size
from worthit.cli._inside import cautions, need_interp, share, texts
from worthit.cli._progress import Progress


@click.command("probe")
@click.argument("model", metavar="MODEL", type=Name("model", "MODEL", is_path=True))
@click.argument("data", metavar="DATA.jsonl", type=click.Path())
@click.option(
    "--point", "points", multiple=True, metavar="NAME", help="Where; default: all layers."
)
@click.option(
    "--position",
    type=click.Choice(("last", "mean")),
    default="last",
    show_default=True,
    help="Of each text: its last token, or the mean of all but the first.",
)
@click.option("--samples", type=Size(), default=0, help="Of each question: answers to compare.")
@click.option("--json", "is_json", is_flag=True, help="Print one record.")
def command(
    model: str,
    data: str,
    points: tuple[str, ...],
    position: Literal["last", "mean"],
    samples: int,
    is_json: bool,
) -> None:
    """Probe what a model's layers know, with the controls that keep it honest.

    DATA has a line each: {"text": ..., "label": ...} fits a probe at every layer, beside layer 0,
    the most frequent label and shuffled labels; {"question": ..., "answer": ...} asks the model,
    and reports which signals tell its wrong answers: AUROC with intervals, calibration, and the
    errors that are left when the doubtful are not answered.

    \b
    worthit probe smollm2-135m-instruct sentiment.jsonl
    worthit probe smollm2-135m-instruct capitals.jsonl --samples 5 --json
    """
    need_interp()
    from worthit.interp import run

    subject = run.load(model)
    found = run.probed(
        subject,
        texts(data, "questions", "labels"),
        points=points,
        position=position,
        n_samples=samples,
        on_work=Progress(),
    )
    record = {"schema": "worthit.probe/1", "model": model, "data": data, **found}
    if is_json:
        _terminal.show_json(record)
        return
    _terminal.show(_layers(record) if record["kind"] == "labels" else _detectors(record))
    cautions(record)


def _layers(record: dict[str, Any]) -> list[str]:
    terminal = _terminal.of_stdout()
    lines = [
        f"{record['n']} texts, labels {', '.join(record['labels'])}; fitted to {record['n_fit']}, "
        f"accuracy on {record['n_test']} others; the most frequent label alone: "
        f"{record['majority']:.2f}",
        "",
        f"{'point':24}{'accuracy':>10}   {'95 %':16}{'shuffled':>9}",
    ]
    for layer in record["points"]:
        interval = f"[{layer['low']:.2f}, {layer['high']:.2f}]"
        row = f"{layer['point']:24}{layer['accuracy']:>10.2f}   {interval:16}"
        row += f"{layer['shuffled']:>9.2f}  {terminal.bar(layer['accuracy'], 20)}"
        lines.append(terminal.paint(row, "bold") if layer["point"] == record["best"] else row)
    return lines


def _detectors(record: dict[str, Any]) -> list[str]:
    lines = [
        f"{record['n']} questions, {record['accuracy']:.0%} answered rightly; fitted to "
        f"{record['n_fit']}, judged on the rest",
        "",
        f"{'signal of a wrong answer':34}{'AUROC':>6}  {'95 %':14}{'ECE':>6}"
        f"{'errors at 50 %':>16}{'at all':>8}",
    ]
    for d in record["detectors"]:
        a = d["auroc"]
        half = next((r for c, r in d["risk_by_coverage"] if c >= 0.5), None)
        interval = f"[{a['low']:.2f}, {a['high']:.2f}]"
        lines.append(
            f"{d['name']:34}{a['value']:>6.2f}  {interval:14}{d['ece']['value']:>6.2f}"
            f"{share(half):>16}{d['errors']:>8.2f}"
        )
    return lines
