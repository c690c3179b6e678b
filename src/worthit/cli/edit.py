"""`worthit edit`: another fact, by a rank-one change of one matrix."""

from __future__ import annotations

from typing import Any

import click

from worthit.cli import _terminal
from worthit.cli._case import Name
from worthit.cli._inside import need_interp, share, texts
from worthit.cli._progress import Progress


@click.command("edit")
@click.argument("model", metavar="MODEL", type=Name("model", "MODEL", is_path=True))
@click.argument("facts", metavar="FACTS.jsonl", type=click.Path())
@click.argument("out", metavar="[OUT]", type=click.Path(), required=False)
@click.option("--layer", type=int, required=True, help="Whose feed-forward is changed; sweep it.")
@click.option("--steps", type=int, default=20, show_default=True, help="Of gradient, each fact.")
@click.option("--json", "is_json", is_flag=True, help="Print one record.")
def command(model: str, facts: str, out: str | None, layer: int, steps: int, is_json: bool) -> None:
    """Edit facts (ROME), and show what the model says before and after.

    FACTS has a line each: {"prompt": "The capital of {} is", "subject": "France", "target":
    "Rome", "truth": "Paris", "paraphrases": ["..."], "neighbours": [["The capital of Spain is",
    "Madrid"]]}. Each fact is edited and scored alone; with OUT, all are made one after another and
    written.

    \b
    worthit edit smollm2-135m-instruct facts.jsonl --layer 4
    worthit edit ./model facts.jsonl ./edited --layer 4
    """
    need_interp()
    from worthit.interp import run

    subject = run.load(model)
    found = run.edited(
        subject, texts(facts, "facts"), layer=layer, out=out, n_steps=steps, on_work=Progress()
    )
    record = {"schema": "worthit.edit/1", "model": model, "data": facts, **found}
    if is_json:
        _terminal.show_json(record)
        return
    _terminal.show(_lines(record))


def _lines(record: dict[str, Any]) -> list[str]:
    terminal = _terminal.of_stdout()
    lines = []
    for fact in record["facts"]:
        before, after = fact["before"], fact["after"]
        said = terminal.plain(f"{fact['prompt']} -> {fact['target']}")
        lines.append(terminal.paint(said, "bold"))
        for name, side in (("before", before), ("after", after)):
            lines += terminal.wrap(f"{name}: {side['text']!r}", indent=2)
        lines.append(
            f"  efficacy {share(before['efficacy'])} -> {share(after['efficacy'])}, "
            f"paraphrases {share(before['generalisation'])} -> {share(after['generalisation'])}, "
            f"neighbours kept {share(before['specificity'])} -> {share(after['specificity'])}"
        )
    if record["out"]:
        kept = [scores["efficacy"] for scores in record["together"]]
        lines.append(f"wrote {record['out']}: all together, efficacy {sum(kept) / len(kept):.2f}")
    return lines
