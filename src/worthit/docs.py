"""Documents made from the code: `python -m worthit.docs` writes them, `--check` says what is stale.

The command line's help, a page for each technique from its record, the devices and the models.
Nothing here is written by hand twice: to change a page, change what it is made from.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from worthit.cost.bottleneck import TITLES
from worthit.judge.words import count, three
from worthit.report import records
from worthit.scorecard.experiments import experiments
from worthit.scorecard.results import newest
from worthit.scorecard.table import experiment_id, scorecard
from worthit.spec.hf import known_model_types
from worthit.techniques import UNSEEN, Source, Technique, catalogue

ROOT = Path(__file__).resolve().parents[2]
HELP_WIDTH = 88
NOTE = "<!-- Made by `python -m worthit.docs`; change what it is made from. -->"
_ARXIV = re.compile(r"(?:arXiv:)?(\d{4}\.\d{4,5})(?:v\d+)?")
_TEST = re.compile(r"tests/[\w/]+\.py")


def documents() -> dict[str, str]:
    """Every generated document, by its path below the repository's root."""
    found = {
        "docs/cli.md": cli_page(),
        "docs/devices.md": devices_page(),
        "docs/labs/decision-tree.md": decision_tree_page(),
        "docs/models.md": models_page(),
        "docs/scorecard.md": scorecard_page(),
        "docs/techniques/index.md": techniques_index(),
    }
    for t in catalogue().values():
        found[f"docs/techniques/{t.id}.md"] = technique_page(t)
    return found


def stale(root: Path = ROOT) -> list[str]:
    """Paths that are missing, differ from what they should be, or belong to no record any more."""
    wanted = documents()
    wrong = [
        path
        for path, text in wanted.items()
        if not (root / path).is_file() or (root / path).read_text(encoding="utf-8") != text
    ]
    extra = [
        file.relative_to(root).as_posix()
        for file in (root / "docs" / "techniques").glob("*.md")
        if file.relative_to(root).as_posix() not in wanted
    ]
    return sorted([*wrong, *extra])


def write(root: Path = ROOT) -> list[str]:
    """Bring every document up to date; returns what changed."""
    changed = stale(root)
    wanted = documents()
    for path in changed:
        file = root / path
        if path in wanted:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(wanted[path], encoding="utf-8")
        else:
            file.unlink()
    return changed


# --- pages ---------------------------------------------------------------------------------------


def cli_page() -> str:
    """The help of the command and of each verb."""
    import click

    from worthit.cli._group import VERBS, cli

    settings: dict[str, Any] = {"terminal_width": HELP_WIDTH, "max_content_width": HELP_WIDTH}
    settings |= {"help_option_names": ["-h", "--help"]}
    parent = click.Context(cli, info_name="worthit", **settings)
    parts = [("worthit", cli.get_help(parent))]
    for name in VERBS:
        verb = cli.get_command(parent, name)
        assert verb is not None
        context = click.Context(verb, info_name=name, parent=parent, **settings)
        parts.append((f"worthit {name}", verb.get_help(context)))
        for inner, command in getattr(verb, "commands", {}).items():
            below = click.Context(command, info_name=inner, parent=context, **settings)
            parts.append((f"worthit {name} {inner}", command.get_help(below)))
    lines = ["# Command line", "", NOTE, "", _ABOUT_CLI.strip(), ""]
    for title, text in parts:
        plain = "\n".join(line.rstrip() for line in text.splitlines())
        lines += [f"## {title}", "", "```text", plain, "```", ""]
    return _document(lines)


_ABOUT_CLI = """
Results go to stdout; notes, progress and hints to stderr. Every verb takes `--json`: the record
that the Python call returns, and nothing else on stdout. Numbers without a value, such as the time
of a case that does not fit, are `null`.

| exit code | meaning |
|---|---|
| 0 | done, whatever the verdict |
| 1 | the run failed; `WORTHIT_DEBUG=1` shows where an unexpected error came from |
| 2 | the input is wrong: one message, every problem in it |
| 3 | something is missing here; the message is the command that gets it |
| 4 | a measurement was inconclusive |
| 130 | interrupted |

`NO_COLOR`, `TERM=dumb` and `COLUMNS` are honoured; a pipe gets no colour and, without `COLUMNS`,
100 columns.
"""


def technique_page(t: Technique) -> str:
    """One technique: what it is for, what it changes, when it does nothing, who found out."""
    lines = [f"# {t.id}: {t.name}", "", NOTE, "", t.orientation.get("en", ""), ""]
    relieved = ", ".join(
        f"`{name}`" + (" (cost cannot see it)" if name in UNSEEN else "") for name in t.relieves
    )
    lines += [
        "| | |",
        "|---|---|",
        f"| family | {t.family} |",
        f"| relieves | {relieved} |",
        f"| bottleneck | {_cell(t.bottleneck)} |",
        f"| adoption | {t.adoption}: {_cell(t.cost_of_adoption)} |",
        f"| judged on | {'the goal of the case' if t.metric is None else f'`{t.metric}`'} |",
        "",
    ]
    if t.diagram:
        lines += ["## What changes", "", "```text", *_diagram(t.diagram), "```", ""]
        lines += ["`+` added, `-` removed, `~` changed.", ""]
    lines += ["## Does nothing when", "", t.nothing_when, ""]
    lines += ["## Pitfalls", "", *(f"- {pitfall}" for pitfall in t.pitfalls), ""]
    if t.evidence:
        lines += ["## Evidence", "", "Claimed by their authors, in our words.", ""]
        lines += [f"- {e.claim} ({_cite(e.source)})" for e in t.evidence] + [""]
    lines += ["## Sources", "", *(f"- {_reference(source)}" for source in t.sources), ""]
    if "es" in t.orientation:
        lines += ["## En español", "", t.orientation["es"], ""]
    if t.module:
        lines += _in_code(t.module, t.parity)
    if t.experiment:
        lines += _experiments(t)
    lines += [
        "## Ask about your case",
        "",
        "```console",
        f"$ worthit explain {t.id} --for MODEL --on DEVICE",
        "```",
        "",
    ]
    return _document(lines)


def techniques_index() -> str:
    """All techniques by family."""
    lines = ["# Techniques", "", NOTE, ""]
    families: dict[str, list[Technique]] = {}
    for t in catalogue().values():
        families.setdefault(t.family, []).append(t)
    for family, members in families.items():
        lines += [f"## {family}", "", "| technique | | relieves | adoption |", "|---|---|---|---|"]
        lines += [
            f"| [{t.id}]({t.id}.md) | {_cell(t.name)} | {', '.join(t.relieves)} | {t.adoption} |"
            for t in members
        ]
        lines.append("")
    lines += ["## Bottlenecks", "", "| bottleneck | a share of |", "|---|---|"]
    lines += [f"| `{name}` | {title[0]} |" for name, title in TITLES.items()]
    return _document([*lines, ""])


def scorecard_page() -> str:
    """What ships of measurements: every technique, claimed, predicted, measured."""
    record = scorecard(with_own=False)
    lines = ["# Scorecard", "", NOTE, "", _ABOUT_SCORECARD.strip(), ""]
    lines += [
        f"{record['n_measured']} of {record['n_techniques']} techniques are measured: "
        f"{record['n_confirmed']} expectations confirmed, {record['n_refuted']} refuted, "
        f"{record['n_inconclusive']} inconclusive.",
        "",
    ]
    families: dict[str, list[dict[str, Any]]] = {}
    for row in record["rows"]:
        families.setdefault(row["family"], []).append(row)
    heads = ("technique", "expectation", "predicted", "measured", "so", "on")
    for family, rows in families.items():
        lines += [f"## {family}", ""]
        measured = [row for row in rows if row["state"] is not None]
        if measured:
            shown = [_scorecard_row(one) for row in measured for one in (row, *row["others"])]
            lines += [*_table(heads, shown), ""]
        waiting = [row["technique"] for row in rows if row["state"] is None]
        if waiting:
            lines += [f"Not measured yet: {', '.join(waiting)}.", ""]
    return _document(lines)


_ABOUT_SCORECARD = """
What was claimed stands on each technique's own page; here is what was expected before anything ran,
what `worthit cost` predicted, and what `worthit measure` then found, with its 95 % interval.
*Refuted* means that the expectation did not hold; it is as good an answer as *confirmed* and stays.
How an experiment is made and read: [lab.md](lab.md).
"""


def _scorecard_row(row: dict[str, Any]) -> list[str]:
    name, ident = row["technique"], row["experiment"]
    agreement = f" ({row['agreement']} agree)" if row["agreement"] else ""
    return [
        f"[{name}](techniques/{name}.md)" + ("" if ident == name else f": {ident}"),
        f"**{row['state']}**: {row['expected']['statement']}",
        "; ".join(row["predicted"]) + agreement,
        "<br>".join(row["measured"]),
        row["means"],
        f"{row['hardware']}, {row['date']}, {row['n_seeds']} seeds: `{row['command']}`",
    ]


def devices_page() -> str:
    """Every device with its peaks and where they come from."""
    lines = ["# Devices", "", NOTE, "", "Dense peaks in TFLOP/s; an empty cell: none.", ""]
    heads = ("id", "device", "GB", "GB/s", "fp32", "bf16", "fp8", "int8", "fp4", "$/h", "source")
    rows = []
    for d in records.devices():
        flops = d["flops_per_s"]
        peaks = [flops.get(name) for name in ("fp32", "bf16", "fp8", "int8", "fp4")]
        price = d["price_usd_per_hour"]
        rows.append(
            [
                f"`{d['id']}`",
                d["name"],
                three(d["mem_bytes"] / 1e9),
                three(d["mem_bytes_per_s"] / 1e9),
                *(three(peak / 1e12) if peak else "" for peak in peaks),
                f"{price:.2f}" if price else "",
                d["source"],
            ]
        )
    return _document([*lines, *_table(heads, rows), ""])


def models_page() -> str:
    """Every model that ships, its size and where its configuration comes from."""
    lines = ["# Models", "", NOTE, ""]
    rows = [
        [
            f"`{m['id']}`",
            m["name"] or "",
            count(m["counted_params"]),
            m["model_type"] or "native",
            m["source"] or "",
        ]
        for m in records.models()
    ]
    heads = ("id", "model", "parameters", "type", "source")
    known = f"Model types read from a `config.json`: {', '.join(known_model_types())}."
    return _document([*lines, known, "", *_table(heads, rows), ""])


def decision_tree_page() -> str:
    """Which architecture for which situation, with the survey that the tree was grown from."""
    from worthit.judge import tree

    situations = tree.survey()
    root = tree.grow(situations)
    lines = ["# Which architecture for which situation", "", NOTE, "", *_ABOUT_TREE.split("\n")]
    lines += ["```mermaid", *tree.mermaid(root), "```", "", "The same as text:", ""]
    lines += ["```text", *tree.outline(root), "```", "", "## The situations it was grown from", ""]
    heads = ("where", "prompt", "concurrency", "binds", "worth it, with the predicted speed-up")
    rows = [
        [
            s.hardware,
            count(s.prompt),
            str(s.concurrency),
            s.binds,
            ", ".join(f"{name} {gain:.2f}x" for name, gain in s.gains.items()) or "nothing",
        ]
        for s in situations
    ]
    return _document([*lines, *_table(heads, rows), ""])


_ABOUT_TREE = """
Two designs with plain multi-head attention, the shape of a 7B on eight H100s and of a 1.4B on a
laptop, are judged for every architecture below over a grid of prompts and concurrencies (output 500
tokens, stage `design`: anything may still be trained). At each step the tree asks what best
separates the situations by what is worth it. A leaf lists what the judge says `apply` to in all of
its situations, with the mean predicted speed-up. Nobody wrote its thresholds: they move with the
cost model.

Predicted time is all that it sees. What replaces attention loses recall, and what shares keys loses
some quality: `worthit measure linear-attention` and its neighbours put that beside the gain. A
situation of your own is judged by `worthit judge`, not by this summary.
"""


def source_of(module: str) -> str:
    """The file below the repository's root that holds `package.module:Name`; never imports it."""
    return f"src/{module.partition(':')[0].replace('.', '/')}.py"


# --- pieces --------------------------------------------------------------------------------------


def _in_code(module: str, parity: Sequence[str]) -> Iterator[str]:
    """Where the implementation stands, its own explanation, and what it was checked against."""
    file = source_of(module)
    explained = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8")))
    yield from ("## In code", "", f"`{module.partition(':')[2]}` in [{file}](../../{file}):", "")
    yield from (*(explained or "").splitlines(), "")
    if parity:
        yield from ("Parity was checked against:", "")
        yield from (f"- {_TEST.sub(_linked, entry)}" for entry in parity)
        yield ""


def _experiments(t: Technique) -> Iterator[str]:
    """What would settle it, and what did where it was run; the technique's own first."""
    own = experiment_id(t)
    assert own is not None
    others = [e.id for e in experiments().values() if e.technique == t.id and e.id != own]
    yield from ("## Experiments" if others else "## Experiment", "")
    results = newest([own, *others], with_own=False)
    for ident in (own, *others):
        if ident != own:
            yield from (f"### {ident}", "", experiments()[ident].title, "")
        file = source_of(f"worthit.lab.experiments.{ident.replace('-', '_')}")
        yield from (f"[{file}](../../{file}):", "")
        yield from ("```console", f"$ worthit measure {t.id if ident == own else ident}", "```", "")
        if ident in results:
            yield from _found(results[ident])


def _found(result: dict[str, Any]) -> Iterator[str]:
    yield from (f"Expected: {result['expectation']['statement']} **{result['state']}**", "")
    yield from (f"- {line}" for line in result["verdict"])
    yield from ("", f"{result['means']} See the [scorecard](../scorecard.md).", "")


def _linked(match: re.Match[str]) -> str:
    return f"[{match[0]}](../../{match[0]})"


def _document(lines: Sequence[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _diagram(steps: Sequence[str]) -> Iterator[str]:
    signs = {"added": "+", "removed": "-", "changed": "~", "same": " "}
    for i, step in enumerate(steps):
        if i:
            yield "  |"
        yield f"{signs[records.change_of(step)]} {records.text_of(step)}".rstrip()


def _cite(source: Source) -> str:
    return f"{source.cite}, {_link(source.id)}"


def _reference(source: Source) -> str:
    where = f", {source.where}" if source.where else ""
    return f"{source.cite}, *{source.title}*, {_link(source.id)}{where}"


def _link(ident: str) -> str:
    match = _ARXIV.fullmatch(ident)
    if match:
        return f"[arXiv:{match[1]}](https://arxiv.org/abs/{match[1]})"
    return ident


def main(arguments: Sequence[str]) -> int:
    """Write the documents; with `--check` only say which are stale."""
    if list(arguments) not in ([], ["--check"]):
        sys.stderr.write("python -m worthit.docs [--check]\n")
        return 2
    if not arguments:
        for path in write():
            sys.stdout.write(f"{path}\n")
        return 0
    wrong = stale()
    for path in wrong:
        sys.stdout.write(f"stale: {path}\n")
    if wrong:
        sys.stdout.write("bring them up to date: python -m worthit.docs\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
