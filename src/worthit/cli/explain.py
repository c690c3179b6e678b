"""`worthit explain`: one technique, and what it would do for a case."""

from __future__ import annotations

from typing import Any

import click

from worthit.cli import _terminal
from worthit.cli._case import CASE_FLAGS, Name, case_options, read_case
from worthit.errors import InputError

# What may be wanted of a model's activations; `worthit.spec.case.INSIDES`, without its import.
NEEDS = ("represent", "control", "circuit", "debug", "detect")


@click.command("explain")
@click.argument("name", metavar="TECHNIQUE", type=Name("technique", "TECHNIQUE"))
@click.option(
    "--for",
    "target",
    type=Name("model", "MODEL|CASE", is_path=True),
    help="Judge it on this case, with every number.",
)
@click.option(
    "--data",
    "preferences",
    metavar="PREFS.jsonl",
    type=click.Path(),
    help="With --for: preferences to learn from.",
)
@case_options(required=False)
@click.option(
    "--lang", type=click.Choice(("en", "es")), default="en", help="Language of the orientation."
)
@click.option(
    "--json", "is_json", is_flag=True, help="Print the technique and its verdict as JSON."
)
def command(
    name: str,
    target: str | None,
    preferences: str | None,
    lang: str,
    is_json: bool,
    **flags: Any,
) -> None:
    """Explain a technique, and what it would do for a case.

    A need of somebody who looks inside of a model (represent, control, circuit, debug, detect)
    explains which techniques answer it, and when.

    \b
    worthit explain gqa
    worthit explain control
    worthit explain kv-quantization --for llama-3.1-8b --on h100 --prompt 8k --concurrency 32
    worthit explain dpo --for smollm2-135m --data prefs.jsonl
    """
    stated = [name for name in CASE_FLAGS if flags[name] is not None]
    stated += ["data"] if preferences is not None else []
    if target is None and stated:
        raise InputError(
            f"--{stated[0].replace('_', '-')} describes a case and there is none; add --for MODEL"
        )
    from worthit.cli._explain_text import explain_lines
    from worthit.judge.judge import judge_case
    from worthit.report.records import explain
    from worthit.techniques import technique

    if name in NEEDS:
        if target is not None:
            raise InputError(f"--for judges a technique, and {name} is a need; leave it out")
        _explain_need(name, lang=lang, is_json=is_json)
        return
    t = technique(name)
    judgement = None
    if target is not None:
        judgement = judge_case(read_case(target, flags, preferences=preferences), only=[name])
        _terminal.warn(judgement.case.warnings)
    if is_json:
        _terminal.show_json(explain(t, judgement))
        return
    _terminal.show(explain_lines(t, judgement, _terminal.of_stdout(), lang=lang))


def _explain_need(need: str, *, lang: str, is_json: bool) -> None:
    """The techniques that answer a need, the first to try first."""
    from worthit.spec.codec import to_json
    from worthit.techniques.interpretability._guide import guide

    found = guide(need)
    if is_json:
        _terminal.show_json({"schema": "worthit.explain-need/1", **to_json(found)})
        return
    terminal = _terminal.of_stdout()
    lines = [terminal.paint(terminal.plain(f"{found.id}: {found.question[lang]}"), "bold"), ""]
    for option in found.options:
        lines += _terminal.labelled(option.technique, option.when[lang], terminal, width=22)
    _terminal.show([*lines, "", *terminal.wrap(found.caution[lang])])
