"""`worthit steer`: what a model says when it is pushed along a direction."""

from __future__ import annotations

from typing import Any, Literal

import click

from worthit.cli import _terminal
from worthit.cli._case import Name, Size
from worthit.cli._inside import POINT, need_interp, texts
from worthit.cli._progress import Progress
from worthit.cli.generate import read_prompt


@click.command("steer")
@click.argument("model", metavar="MODEL", type=Name("model", "MODEL", is_path=True))
@click.argument("prompt", metavar="PROMPT|-")
@click.option(
    "--pairs", type=click.Path(), help='JSONL of {"positive": ..., "negative": ...}: which way.'
)
@click.option("--direction", type=click.Path(), help="A direction that --save wrote.")
@click.option("--layer", type=int, help="After which layer; default: the middle one.")
@POINT
@click.option(
    "--position",
    type=click.Choice(("last", "mean")),
    default="last",
    show_default=True,
    help="Of each text: its last token, or the mean of all but the first.",
)
@click.option(
    "--strength",
    type=float,
    default=1.0,
    show_default=True,
    help="Multiples of the direction's own length; below 0 away from it.",
)
@click.option("--ablate", is_flag=True, help="Take the direction out everywhere instead.")
@click.option("--bake", metavar="OUT", type=click.Path(), help="With --ablate: write the model.")
@click.option("--save", metavar="FILE", type=click.Path(), help="Write the direction.")
@click.option("--max-tokens", type=Size(), default=40, show_default=True, help="At most so many.")
@click.option("--chat/--raw", "is_chat", default=None, help="Use the chat template or not.")
@click.option("--json", "is_json", is_flag=True, help="Print one record.")
def command(
    model: str,
    prompt: str,
    pairs: str | None,
    direction: str | None,
    layer: int | None,
    point: str | None,
    position: Literal["last", "mean"],
    strength: float,
    ablate: bool,
    bake: str | None,
    save: str | None,
    max_tokens: int,
    is_chat: bool | None,
    is_json: bool,
) -> None:
    """Steer a model along a direction, and show the text before and after.

    The direction is the difference of means of contrast pairs. Beside the steered text stand the
    text as it is, one along a random direction of the same length, and each one's perplexity under
    the model as it is: what steering costs in fluency.

    \b
    worthit steer smollm2-135m-instruct "I think that" --pairs mood.jsonl --layer 15 --strength 4
    worthit steer ./model "How do I ...?" --direction refusal.safetensors --ablate --bake ./ablated
    """
    text = read_prompt(prompt)
    if bake is not None and not ablate:
        raise click.UsageError("--bake writes what --ablate takes out; add --ablate.")
    need_interp()
    from worthit.interp import run

    subject = run.load(model)
    work = Progress()
    where = run.point_of(subject.model, layer, point)
    found, facts = run.direction_of(
        subject,
        pairs=None if pairs is None else texts(pairs, "pairs"),
        file=direction,
        point=where,
        position=position,
        on_work=work,
    )
    said = run.steered(
        subject,
        text,
        found,
        strength=strength,
        is_ablation=ablate,
        is_chat=is_chat,
        max_tokens=max_tokens,
        on_work=work,
    )
    if save is not None:
        found.save(save)
    if bake is not None:
        run.bake(subject, found, bake)
    record = {
        "schema": "worthit.steer/1",
        "model": model,
        "prompt": text,
        "direction": {
            "point": found.point,
            "method": found.method,
            "norm": found.norm,
            "note": found.note,
            **facts,
        },
        "how": "ablation" if ablate else "addition",
        "strength": None if ablate else strength,
        "texts": said,
        "saved": save,
        "baked": bake,
    }
    if is_json:
        _terminal.show_json(record)
        return
    _terminal.show(_lines(record))


def _lines(record: dict[str, Any]) -> list[str]:
    terminal = _terminal.of_stdout()
    d = record["direction"]
    known = ""
    if "held_out_auroc" in d:
        known = (
            f"; length {d['share_of_stream']:.2f} of the stream's; AUROC {d['held_out_auroc']:.2f} "
            f"on {d['n_held_out']} pairs held out"
        )
    step = "taken out" if record["how"] == "ablation" else f"times {record['strength']:g}"
    lines = [*terminal.wrap(f"{d['method']} at {d['point']}, {step}{known}"), ""]
    for said in record["texts"]:
        label = f"{said['arm']}  (perplexity {said['perplexity']:.3g})"
        lines += [terminal.paint(label, "bold"), *terminal.wrap(said["text"] or "", indent=2), ""]
    lines += [f"wrote {path}" for path in (record["saved"], record["baked"]) if path]
    return lines
