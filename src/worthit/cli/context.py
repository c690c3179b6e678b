"""`worthit context`: nominal against effective context, as it is and stretched."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worthit.cli import _terminal
from worthit.cli._case import Name, Size
from worthit.cli._progress import Progress, time_text
from worthit.errors import InputError, MissingCapability

if TYPE_CHECKING:
    from worthit.decode.longcontext import Measured, Pace, Setup

# The shortest prompt, and the longest unless longer ones are asked for: minutes on two cores.
FIRST, LAST = 512, 8192
PLAIN = "none"


@click.command("context")
@click.argument("model", metavar="MODEL", type=Name("model", "MODEL", is_path=True))
@click.option(
    "--rope",
    "ropes",
    multiple=True,
    metavar="METHOD:FACTOR",
    help="Stretch the context, as yarn:4 does; none is the model as it is; repeatable.",
)
@click.option(
    "--lengths", metavar="N,N,...", help="Of prompts, in tokens; default: 512 doubled to 8k."
)
@click.option("--depths", default="0.1,0.5,0.9", show_default=True, help="Where the needle is.")
@click.option("--repeats", type=int, default=1, show_default=True, help="Needles a depth.")
@click.option("--keys", type=int, default=1, show_default=True, help="Numbers, one asked for.")
@click.option("--rows", type=int, default=2, show_default=True, help="Files for the loss.")
@click.option(
    "--row-length", type=Size(), metavar="N", help="Of each; default: the longest of the prompts."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of text and numbers.")
@click.option(
    "--dtype",
    type=click.Choice(("fp32", "bf16")),
    default="bf16",
    show_default=True,
    help="Weights.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Keep what is measured here, and go on from it."
)
@click.option("--html", "page", metavar="FILE", help="Also write a page; or .svg, or .md.")
@click.option("--json", "is_json", is_flag=True, help="Print one record.")
def command(
    model: str,
    ropes: tuple[str, ...],
    lengths: str | None,
    depths: str,
    repeats: int,
    keys: int,
    rows: int,
    row_length: int | None,
    seed: int,
    dtype: str,
    out: Path | None,
    page: str | None,
    is_json: bool,
) -> None:
    """Measure how much of its context a model uses.

    A number is hidden in a long text and asked for at its end, at several lengths and depths; and
    the loss of long files is taken by position. With --out an interrupted run goes on.

    \b
    worthit context smollm2-135m-instruct --html context.html
    worthit context ./model --rope none --rope yarn:2 --lengths 4096,8192,12288 --out runs.json
    """
    if page is not None:
        from worthit.report.write import check_target

        check_target(page)
    _need_torch()
    from worthit.decode.longcontext import Setup, measure, pace
    from worthit.decode.tokenizer import load_tokenizer
    from worthit.nn.inference import optimize
    from worthit.nn.load import checkpoint_path, load_model
    from worthit.spec.extension import parse_extension

    arms = ropes or (PLAIN,)
    for rope in arms:
        if rope != PLAIN:
            parse_extension(rope)
    path = checkpoint_path(model)
    tokenizer = load_tokenizer(path)
    first = load_model(path, dtype=dtype, packed=False)
    setup = Setup(
        lengths=_numbers("lengths", lengths, int) if lengths else _lengths(first.spec.context_len),
        depths=_numbers("depths", depths, float),
        repeats=repeats,
        n_keys=keys,
        n_rows=rows,
        seed=seed,
        row_length=row_length,
    )
    record = _record(model, path, dtype, setup, first.spec.context_len)
    if out is not None:
        record["arms"] = _known(out, record)
    work: Work | None = None
    progress = Progress()
    for rope in arms:
        loaded = first if rope == PLAIN else load_model(path, dtype=dtype, packed=False, rope=rope)
        context_len = loaded.spec.context_len
        loaded = optimize(loaded)
        if work is None:
            work = Work(pace(loaded, max(setup.passes, default=FIRST)), setup, record["arms"], arms)
            _terminal.note(
                f"{len(arms)} x {setup.n_tokens} tokens: about {time_text(work.left_s())}"
            )
        known = _measured(record["arms"].get(rope, {}))

        def keep(
            done: Measured, rope: str = rope, context_len: int = context_len, work: Work = work
        ) -> None:
            record["arms"][rope] = done.record(context_len)
            n_done = len(done.cells) + done.n_rows
            progress(f"rope {rope}", n_done, setup.n_cells + rows, work.left_s())
            if out is not None:
                _write(out, record)

        keep(measure(loaded, tokenizer, setup, known=known, on_cell=keep))
    record["arms"] = {rope: record["arms"][rope] for rope in arms}
    if page is not None:
        from worthit.report.context import write_context

        size = write_context(record, page)
        _terminal.note(f"wrote {page} ({size / 1e3:.0f} kB, opens offline)")
    if is_json:
        _terminal.show_json(record)
    else:
        _terminal.show(_lines(record))


def _lengths(context_len: int) -> tuple[int, ...]:
    """512, doubled up to the model's context or `LAST`."""
    found, n = [], FIRST
    while n <= min(context_len, LAST):
        found.append(n)
        n *= 2
    if not found:
        raise InputError(
            f"lengths: the shortest is {FIRST}, and the model's context is {context_len} tokens"
        )
    return tuple(found)


def _numbers(name: str, text: str, kind: type) -> tuple[Any, ...]:
    found = []
    for part in text.split(","):
        try:
            number = Size().convert(part, None, None) if kind is int else kind(part)
        except (ValueError, click.BadParameter):
            raise InputError(f"--{name}: numbers between commas, got {part!r}") from None
        found.append(number)
    return tuple(dict.fromkeys(found))


def _need_torch() -> None:
    try:
        import torch  # noqa: F401 - only whether it is there
    except ImportError:
        raise MissingCapability(
            "measuring a model's context needs the extra 'torch'", "pip install 'worthit[torch]'"
        ) from None


class Work:
    """How long what is left takes: by passes timed before, corrected by those that are done.

    Attributes:
        arms: the record's, which fills as the work goes on.
    """

    def __init__(
        self, pace: Pace, setup: Setup, arms: Mapping[str, Any], names: Sequence[str]
    ) -> None:
        self.pace, self.setup, self.arms, self.names = pace, setup, arms, names
        self.started, self.n_before = time.monotonic(), {n: self._done(n) for n in names}

    def _done(self, name: str) -> int:
        found = _measured(self.arms.get(name, {}))
        return len(found.cells) + found.n_rows

    def left_s(self) -> float:
        """Seconds; cells are counted as if they came in order, which they do."""
        each = [self.pace.of(n) for n in self.setup.passes]
        left = sum(sum(each[self._done(name) :]) for name in self.names)
        done = sum(sum(each[self.n_before[n] : self._done(n)]) for n in self.names)
        spent = time.monotonic() - self.started
        # A tenth of the work says more than the probe did.
        return left * (spent / done if done > 0.1 * (done + left) else 1.0)


def _measured(arm: Mapping[str, Any]) -> Measured:
    """What the record of an arm holds, to go on from."""
    from worthit.decode.longcontext import Measured

    return Measured(
        cells=list(arm.get("needle", ())),
        positions=[
            {k: v for k, v in bucket.items() if k != "perplexity"}
            for bucket in arm.get("positions", ())
        ],
    )


def _record(model: str, path: Path, dtype: str, setup: Setup, context_len: int) -> dict[str, Any]:
    import platform
    from dataclasses import asdict

    return {
        "schema": "worthit.context/1",
        "model": model,
        "path": str(path),
        "dtype": dtype,
        "text": f"standard library of Python {platform.python_version()}",
        "context_len": context_len,
        "setup": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(setup).items()},
        "arms": {},
    }


def _known(out: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier run of the same setup left in `out`."""
    if not out.exists():
        if not out.absolute().parent.is_dir():
            raise InputError(f"--out: there is no folder {out.absolute().parent}; make it first")
        return {}
    try:
        found = json.loads(out.read_bytes())
        arms = dict(found["arms"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"--out: {out} is no record of this verb; name another file") from None
    for key in ("schema", "path", "dtype", "text", "setup"):
        if found.get(key) != record[key]:
            raise InputError(
                f"--out: {out} has another {key}: {found.get(key)}; this run has {record[key]}; "
                "name another file"
            )
    return arms


def _write(out: Path, record: Mapping[str, Any]) -> None:
    handle, name = tempfile.mkstemp(dir=out.absolute().parent, prefix=f".{out.name}-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=2)
    Path(name).replace(out)


def _lines(record: Mapping[str, Any]) -> list[str]:
    lines = []
    for rope, arm in record["arms"].items():
        effective = arm["effective"]
        name = "as it is" if rope == PLAIN else f"rope {rope}"
        lines.append(f"{name}: nominal {arm['context_len']} tokens")
        if effective["needle"] is not None:
            parts = (f"{a['length']}: {100 * a['accuracy']:.0f} %" for a in arm["accuracy"])
            lines.append(f"  needle    effective {effective['needle']:>6}   {', '.join(parts)}")
        if effective["loss"] is not None:
            parts = (f"{b['end']}: {b['perplexity']:.3g}" for b in arm["positions"])
            lines.append(f"  perplexity effective {effective['loss']:>5}   {', '.join(parts)}")
    return lines
