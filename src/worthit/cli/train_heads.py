"""`worthit train-heads`: heads that draft for a model, and what they foresee of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from worthit.cli import _terminal
from worthit.cli._case import Name, Size
from worthit.cli._progress import Progress, size_text, time_text
from worthit.errors import MissingCapability


@click.command("train-heads")
@click.argument("model", metavar="MODEL", type=Name("model", "MODEL", is_path=True))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--kind",
    type=click.Choice(("medusa", "eagle", "exit")),
    default="eagle",
    show_default=True,
    help="Several tokens at once; token by token from features; from an early layer.",
)
@click.option("--tokens", type=Size(), help="Of the model's own text to learn from.")
@click.option("--minutes", type=float, help="As much text as this allows here; default: 10.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Prompts, one a line, for the model to answer; default: it asks itself.",
)
@click.option("--heads", type=Size(), default=3, show_default=True, help="Of medusa.")
@click.option(
    "--draft-vocab",
    type=Size(),
    default=8192,
    show_default=True,
    help="Tokens that can be drafted: those that the model says most.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "is_json", is_flag=True, help="Print one record.")
def command(
    model: str,
    out: Path,
    kind: Literal["medusa", "eagle", "exit"],
    tokens: int | None,
    minutes: float | None,
    data: Path | None,
    heads: int,
    draft_vocab: int,
    seed: int,
    is_json: bool,
) -> None:
    """Train heads that draft for a model, on what it says itself.

    The model writes, the heads learn to foresee it, and OUT is a folder for --draft of `worthit
    generate`. The text of the model is that of no heads at all, whatever they guess. Stopped, the
    same command goes on.

    \b
    worthit train-heads smollm2-135m-instruct ./eagle
    worthit train-heads ./model ./medusa --kind medusa --minutes 5
    worthit train-heads ./model ./eagle --data prompts.txt --tokens 200000
    """
    try:
        import torch  # noqa: F401 - only whether it is there
    except ImportError:
        raise MissingCapability(
            "training heads needs the extra 'torch'", "pip install 'worthit[torch]'"
        ) from None
    from worthit.decode.speculative import train_heads

    prepared = train_heads.prepare(
        train_heads.Job(
            source=model,
            out=out,
            kind=kind,
            n_tokens=tokens,
            minutes=minutes,
            data=data,
            n_heads=heads,
            draft_vocab=draft_vocab,
            seed=seed,
        )
    )
    plan = prepared.plan
    _terminal.note(
        f"{kind}: {plan.n_tokens} tokens of the model's own text, {plan.n_steps} updates; about "
        f"{time_text(plan.seconds)} ({time_text(plan.write_s)} of it writing) and "
        f"{size_text(plan.disk_bytes)} of disk meanwhile"
    )
    record = train_heads.run(prepared, on_work=Progress())
    if is_json:
        _terminal.show_json(record)
        return
    _terminal.show(_lines(record))


def _lines(record: dict[str, Any]) -> list[str]:
    trained = record["trained"]
    shares = ", ".join(f"{100 * share:.0f} %" for share in trained["acceptance"])
    took = f"{time_text(trained['write_s'])} writing, {time_text(trained['learn_s'])} learning"
    return [
        f"wrote {record['out']}: {record['kind']}, {record['n_params'] / 1e6:.1f} M parameters, "
        f"{record['draft_vocab']} tokens that cover {100 * trained['coverage']:.1f} % of what is "
        "said",
        f"foreseen    {trained['accepted']:.2f} tokens of a chain of {len(trained['acceptance'])}: "
        f"{shares} right up to each ({trained['n_drafts']} held-out places, greedy)",
        f"took        {took}",
    ]
