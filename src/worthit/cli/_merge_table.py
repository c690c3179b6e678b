"""What was read of checkpoints, and what to do with them, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from worthit.cli._terminal import Terminal, labelled
from worthit.cost.bottleneck import percent
from worthit.judge.words import count

if TYPE_CHECKING:
    from worthit.merge.advice import Advice
    from worthit.merge.reading import Reading

MARKS = {"apply": "△ apply?", "defer": "◆ defer?", "never": "■ never"}
STYLES = {"apply": ("green",), "defer": ("yellow",), "never": ("red",)}


def merge_lines(reading: Reading, advice: Advice, recipe: str, terminal: Terminal) -> Iterator[str]:
    """The checkpoints, the verdict with its reasons, and a recipe that follows it."""
    base = reading.recipe.base_model
    of = f" of {base}" if base else ", no base"
    what = f"{len(reading.models)} checkpoint{'s' if len(reading.models) > 1 else ''}{of}"
    read = "all of it read" if reading.share >= 1 else f"{percent(reading.share)} of it read"
    yield terminal.paint(f"{what}: {count(reading.n_params)} parameters in common, {read}", "bold")
    if reading.vectors:
        yield ""
        yield from _table(
            ("CHECKPOINT", "MOVED BY", "99 % OF STEPS", "90 % OF IT IN", "CHANGED"),
            [
                (
                    v.model,
                    percent(v.length),
                    f"{v.p99:.2g}",
                    percent(v.density),
                    percent(v.changed),
                )
                for v in reading.vectors
            ],
            terminal,
        )
    if reading.pairs:
        yield ""
        yield from _table(
            ("PAIR", "COSINE", "SIGNS DIFFER", "LARGE IN BOTH", "BY PART"),
            [
                (
                    f"{p.one}, {p.two}",
                    _two(p.cosine if p.cosine is not None else p.of_weights),
                    _share(p.conflict),
                    _share(p.overlap),
                    _parts(p.by_part),
                )
                for p in reading.pairs
            ],
            terminal,
        )
    yield ""
    mark = terminal.paint(terminal.plain(MARKS[advice.verdict]), *STYLES[advice.verdict])
    yield f"{mark}  {terminal.paint(advice.method or 'no merge', 'bold')}"
    for reason in advice.reasons:
        yield from terminal.wrap(reason, indent=2)
    for method, reason in advice.others.items():
        yield from labelled("Or", f"{method}: {reason}", terminal)
    for caution in advice.cautions:
        yield from labelled("Mind", caution, terminal)
    if advice.check_with:
        yield from labelled("Check", f"on {advice.check_with}", terminal)
    if recipe:
        yield ""
        yield from recipe.rstrip().split("\n")
    if advice.verdict != "never":
        yield ""
        yield from (
            terminal.paint(line, "dim")
            for line in terminal.wrap(
                "Weights show interference, not quality: the verdict is provisional until the "
                "merge is measured. Moved by: length of the task vector over that of the base. "
                "Signs differ: among the largest fifth of both, 50 % by chance."
            )
        )


def _table(
    heads: tuple[str, ...], rows: list[tuple[str, ...]], terminal: Terminal
) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [heads, *rows]
    ]
    yield terminal.paint(terminal.plain(lines[0]), "bold")
    yield from (terminal.plain(line) for line in lines[1:])


def _two(number: float) -> str:
    # A minus in front of nothing is noise.
    return f"{number:.2f}".replace("-0.00", "0.00")


def _share(share: float | None) -> str:
    return "" if share is None else percent(share)


def _parts(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{part} {_two(x)}" for part, x in parts.items() if x == x)
