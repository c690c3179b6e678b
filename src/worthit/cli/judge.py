"""`worthit judge`: every technique on one case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from worthit.cli import _terminal
from worthit.cli._case import (
    Name,
    Size,
    as_flags,
    case_options,
    check_only,
    read_case,
    split_names,
)

if TYPE_CHECKING:
    from worthit.spec.case import Case


@click.command("judge")
@case_options(is_target_optional=True)
@click.option(
    "--merge",
    "recipe",
    metavar="RECIPE.yml",
    type=click.Path(),
    help="Read the checkpoints of a merge instead, and say which method fits them.",
)
@click.option(
    "--data",
    "preferences",
    metavar="PREFS.jsonl",
    type=click.Path(),
    help="Preferences to learn from (JSONL, JSON, Parquet): which method fits them.",
)
@click.option(
    "--margin",
    metavar="N",
    type=Size(),
    help="With --data: also run MODEL's weights on N of the examples; takes torch and a while.",
)
@click.option(
    "--only",
    multiple=True,
    type=Name("technique or family", "ID|FAMILY"),
    help="Judge these alone; repeat, or separate with commas.",
)
@click.option(
    "--with",
    "on_top_of",
    multiple=True,
    type=Name("technique", "ID,ID"),
    help="Apply these first, in this order, and judge what they leave.",
)
@click.option("--all", "is_full", is_flag=True, help="Every row in full, not applicable ones too.")
@click.option("--html", "page", metavar="FILE", help="Also write the report, one offline page.")
@click.option("--json", "is_json", is_flag=True, help="Print the record of worthit.judge(case).")
@click.option(
    "--lang", type=click.Choice(("en", "es")), default="en", help="Language of headings and page."
)
def command(
    target: str | None,
    recipe: str | None,
    preferences: str | None,
    margin: int | None,
    only: tuple[str, ...],
    on_top_of: tuple[str, ...],
    is_full: bool,
    page: str | None,
    is_json: bool,
    lang: str,
    **flags: Any,
) -> None:
    """Judge every technique on a case: apply, defer or never, and why.

    MODEL is a preset (worthit list models), a config.json, a checkpoint folder, a .gguf file or a
    model of the local hub cache; CASE.toml is a case in full. Sizes may be written 4k, 1e11, 15T.

    \b
    worthit judge grammar-tutor
    worthit judge llama-3.1-70b --on h100:8 --prompt 4000 --output 500 --concurrency 64
    worthit judge llama-3.1-8b --on h100:8 --train-tokens 100G --seq 8192 --batch-tokens 1M
    worthit judge llama-3.1-8b --data prefs.jsonl --only alignment
    worthit judge --merge recipe.yml
    """
    if recipe is not None:
        if target is not None:
            raise click.UsageError("Give MODEL|CASE.toml or --merge, not both.")
        if (
            preferences
            or margin
            or only
            or on_top_of
            or is_full
            or page
            or any(v is not None for v in flags.values())
        ):
            raise click.UsageError("--merge reads checkpoints; of the other flags it takes --json.")
        _judge_merge(recipe, is_json=is_json)
        return
    if target is None:
        raise click.UsageError("Missing argument 'MODEL|CASE.toml'.")
    if margin is not None and preferences is None:
        raise click.UsageError("--margin runs the model on examples: give them by --data.")
    case = read_case(target, flags, preferences=preferences)
    if margin is not None:
        assert preferences is not None
        case = _with_margin(case, target, preferences, margin)
    if page is not None:
        from worthit.report.write import check_target

        check_target(page)
    from worthit.judge.judge import judge_case

    judgement = judge_case(
        case,
        only=check_only(split_names(only)),
        on_top_of=split_names(on_top_of),
        with_curves=page is not None,
    )
    _terminal.warn(judgement.case.warnings)
    if page is not None:
        from worthit.report.write import write_page

        size = write_page(judgement, page, command=_command_line(), lang=lang)
        _terminal.note(f"wrote {page} ({size / 1e3:.0f} kB, opens offline)")
    if is_json:
        _terminal.show_json(judgement.to_json())
        return
    from worthit.cli._judge_table import footer_hints, judgement_lines

    described = as_flags(target, flags, data=preferences)
    terminal = _terminal.of_stdout()
    _terminal.show(judgement_lines(judgement, terminal, is_full=is_full, lang=lang))
    for hint in footer_hints(judgement, described, is_full=is_full):
        _terminal.note(hint)


def _with_margin(case: Case, target: str, preferences: str, n: int) -> Case:
    """The case with what the model's weights make of `n` examples."""
    from dataclasses import replace

    from worthit.errors import MissingCapability

    try:
        import torch  # noqa: F401 - only whether it is there
    except ImportError:
        raise MissingCapability(
            "running a model needs the extra 'torch'", "pip install 'worthit[torch]'"
        ) from None
    from worthit.align.margin import margin_of
    from worthit.spec.preferences import read_preferences

    facts = case.data.preferences
    assert facts is not None
    found = margin_of(target, read_preferences(preferences), n=n)
    return replace(case, data=replace(case.data, preferences=replace(facts, margin=found)))


def _judge_merge(recipe: str, *, is_json: bool) -> None:
    """Read the checkpoints of a merge and say which method fits them."""
    from pathlib import Path

    from worthit.cli.merge import need_torch

    need_torch("reading checkpoints")
    from worthit.merge.advice import advise, recipe_text
    from worthit.merge.read_recipe import read_text
    from worthit.merge.reading import read_checkpoints

    path = Path(recipe)
    reading = read_checkpoints(read_text(path), folder=path.parent, name=path.name)
    advice = advise(reading)
    text = recipe_text(reading, advice)
    if is_json:
        record = {
            "schema": "worthit.judge-merge/1",
            "reading": reading.to_json(),
            "advice": advice.to_json(),
            "recipe": text,
        }
        _terminal.show_json(record)
        return
    from worthit.cli._merge_table import merge_lines

    terminal = _terminal.of_stdout()
    _terminal.show(merge_lines(reading, advice, text, terminal))


def _command_line() -> str:
    """What was typed, quoted so that a shell reads it again."""
    import shlex
    import sys

    return shlex.join(["worthit", *sys.argv[1:]])
