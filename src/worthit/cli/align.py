"""`worthit align`: a model learns from preferences, ratings, demonstrations or feedback."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worthit.cli import _terminal
from worthit.cli._case import Name, Size
from worthit.cli._progress import Progress, size_text, time_text
from worthit.errors import MissingCapability

if TYPE_CHECKING:
    from worthit.align.job import Prepared

METHODS = (
    "dpo",
    "ipo",
    "kto",
    "simpo",
    "orpo",
    "spin",
    "rlaif",
    "constitutional-ai",
    "grpo",
    "ppo",
    "reward",
)
# Options that belong to some methods, by the names of their records' fields.
SETTINGS = ("beta", "kind", "label_smoothing", "gamma", "weight", "n_rounds", "group", "normaliser")


@click.command("align")
@click.argument("model", metavar="MODEL", type=Name("model", "MODEL", is_path=True))
@click.argument("data", metavar="DATA", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--method", type=click.Choice(METHODS), default="dpo", show_default=True)
@click.option("--beta", type=float, help="Price of leaving the reference; simpo: scale of rewards.")
@click.option("--kind", type=click.Choice(("sigmoid", "hinge", "robust")), help="dpo: which loss.")
@click.option("--label-smoothing", type=float, help="dpo: share of labels taken to be wrong.")
@click.option("--gamma", type=float, help="simpo: margin to win by.")
@click.option("--weight", type=float, help="orpo: of the odds ratio.")
@click.option("--rounds", "n_rounds", type=int, help="spin: of self-play.")
@click.option("--group", type=int, help="grpo: answers to a prompt.")
@click.option(
    "--normaliser",
    type=click.Choice(("sequence", "tokens", "constant")),
    help="grpo: what a token's loss is divided by.",
)
@click.option("--epochs", "n_epochs", type=float, default=1.0, show_default=True)
@click.option("--steps", "n_steps", type=Size(), help="Updates, in place of epochs.")
@click.option("--batch", "batch_size", type=Size(), default=16, show_default=True)
@click.option("--accumulate", type=int, default=1, show_default=True, help="Parts of a batch.")
@click.option("--lr", type=float, help="Default: 1e-6 (orpo 8e-6, reward 1e-5); adapters 20 times.")
@click.option("--lora", type=int, default=0, help="Train adapters of this rank, merged at the end.")
@click.option("--alpha", type=float, help="Of adapters; default: twice the rank.")
@click.option(
    "--dtype",
    type=click.Choice(("fp32", "bf16")),
    default="fp32",
    show_default=True,
    help="Weights; bf16 with --lora alone.",
)
@click.option(
    "--precision",
    type=click.Choice(("fp32", "bf16")),
    default="fp32",
    show_default=True,
    help="Products.",
)
@click.option("--max-length", type=Size(), help="Tokens of prompt and answer; default: context.")
@click.option("--max-tokens", type=Size(), default=128, show_default=True, help="Of an answer.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Of answers.")
@click.option(
    "--held-out", type=float, default=0.05, show_default=True, help="Share of prompts kept apart."
)
@click.option("--judge", metavar="MODEL", help="rlaif, constitutional-ai: who labels.")
@click.option(
    "--certainty", type=float, default=0.6, show_default=True, help="Least sure label learned."
)
@click.option("--criterion", help="rlaif: what a better answer is, for the judge.")
@click.option(
    "--constitution", type=click.Path(path_type=Path), help="Text, principle by paragraph."
)
@click.option("--reward", metavar="exact|FOLDER", help="grpo, ppo: what is good.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--plan", "is_plan", is_flag=True, help="Say what it would take, and train nothing.")
@click.option("--json", "is_json", is_flag=True, help="Print one record.")
def command(
    model: str,
    data: Path,
    out: Path,
    accumulate: int,
    is_plan: bool,
    is_json: bool,
    **options: Any,
) -> None:
    """Align a model: learn from preferences, ratings, demonstrations or feedback.

    DATA is JSONL, JSON, Parquet or a saved dataset, in the shape that the method learns from: pairs
    (chosen, rejected) for dpo, ipo, simpo, orpo and reward; rated answers (label) for kto;
    demonstrations for spin; prompts for rlaif, constitutional-ai, grpo and ppo. OUT is a new
    folder: a plain checkpoint that appears when all is done. The same command goes on where an
    interrupted one stopped.

    \b
    worthit judge MODEL --data prefs.jsonl        # which method fits these data
    worthit align MODEL prefs.jsonl ./dpo --lora 8
    worthit align MODEL ratings.jsonl ./kto --method kto --beta 0.1
    worthit align MODEL prompts.jsonl ./rlaif --method rlaif --judge ./larger
    worthit align MODEL tasks.jsonl ./grpo --method grpo --reward exact
    """
    _need_torch()
    from worthit.align.job import Job, prepare
    from worthit.align.run import probe, run

    settings = {name: options.pop(name) for name in SETTINGS}
    job = Job(
        source=model,
        data=data,
        out=out,
        settings={name: value for name, value in settings.items() if value is not None},
        n_accumulate=accumulate,
        **options,
    )
    prepared = prepare(job)
    _terminal.warn(prepared.warnings)
    prepared.estimate = replace(prepared.estimate, step_s=probe(prepared))
    if is_plan:
        _show_plan(prepared, is_json=is_json)
        return
    for line in _forecast(prepared):
        _terminal.note(line)
    try:
        record = run(prepared, on_work=Progress(), say=None if is_json else _terminal.note)
    except KeyboardInterrupt:
        _terminal.note("the same command goes on from here")
        raise
    if is_json:
        _terminal.show_json(record)
        return
    terminal = _terminal.of_stdout()
    _terminal.show(line for text in _lines(record) for line in terminal.wrap(text))


def _need_torch() -> None:
    try:
        import torch  # noqa: F401 - only whether it is there
    except ImportError:
        raise MissingCapability(
            "aligning a model needs the extra 'align'", "pip install 'worthit[align]'"
        ) from None


def _forecast(prepared: Prepared) -> list[str]:
    """What it will take, before it is begun."""
    e, r = prepared.estimate, prepared.recipe
    seconds = "" if e.seconds is None else f"about {time_text(e.seconds)} of updates, "
    what = f"{prepared.job.method}: {prepared.n} examples ({prepared.data.shape})"
    return [
        f"{what}, {e.n_updates} updates of {r.batch_size} at {r.lr:g}; {seconds}"
        f"{size_text(e.memory_bytes)} for weights, gradients and optimizer "
        f"({e.n_learning:,} parameters learn)"
    ]


def _show_plan(prepared: Prepared, *, is_json: bool) -> None:
    from worthit.align.stages import method_of

    settings = method_of(prepared)
    if is_json:
        e = prepared.estimate
        _terminal.show_json(
            {
                "method": prepared.job.method,
                "settings": settings,
                "examples": prepared.n,
                "updates": e.n_updates,
                "parameters_learned": e.n_learning,
                "memory_bytes": e.memory_bytes,
                "seconds": e.seconds,
                "notes": prepared.warnings,
            }
        )
        return
    said = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    _terminal.show([*_forecast(prepared), f"settings: {said}"] if said else _forecast(prepared))


def _lines(record: dict[str, Any]) -> list[str]:
    lines = [f"wrote {record['out']}: {record['method']}, {time_text(record['seconds'])}"]
    if "displacement" in record:
        lines.append(f"held out    {record['displacement']}")
        after = record["after"]
        lines.append(
            f"lengths     chosen {after['chosen_tokens']:.1f}, rejected "
            f"{after['rejected_tokens']:.1f} tokens; log-probabilities {after['chosen']:.1f} and "
            f"{after['rejected']:.1f}"
        )
    elif "answers" in record:
        for name in ("before", "after"):
            found = record[name]
            if found:
                lines.append(
                    f"{name:<11} reward {found['reward']:.3f}, {found['tokens']:.0f} tokens an "
                    "answer, greedy on held-out prompts"
                )
    elif record.get("scores"):
        said = ", ".join(f"{name} {value:.3g}" for name, value in record["scores"].items())
        lines.append(f"held out    {said}")
    for i, played in enumerate(record.get("rounds", ()), start=1):
        what = played.get("displacement", "")
        lines.append(
            f"round {i}     {played['different']} of {played['of']} answers differed; {what}"
        )
    lines += [f"note        {note}" for note in record["notes"]]
    return lines
