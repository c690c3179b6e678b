"""`worthit merge`: several checkpoints into one, by a recipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from worthit.cli import _terminal
from worthit.cli._case import Size
from worthit.errors import MissingCapability

if TYPE_CHECKING:
    from worthit.merge.plan import Plan
    from worthit.merge.run import Merged


@click.command("merge")
@click.argument("recipe", metavar="CONFIG.yml", type=click.Path())
@click.argument("out", metavar="[OUT]", type=click.Path(), required=False)
@click.option("--seed", type=int, default=0, show_default=True, help="Of DARE and DELLA.")
@click.option("--shard-bytes", type=Size(), help="At most so many bytes a file (default 5G).")
@click.option("--plan", "is_plan", is_flag=True, help="Show what it would do, and write nothing.")
@click.option("--json", "is_json", is_flag=True, help="Print one record.")
def command(
    recipe: str, out: str | None, seed: int, shard_bytes: int | None, is_plan: bool, is_json: bool
) -> None:
    """Merge checkpoints by a recipe, without training.

    CONFIG.yml is a recipe in the form of mergekit: merge_method, base_model, models or slices,
    parameters. OUT is a new folder: it appears when everything is written, and the same command
    goes on where an interrupted one stopped. Everything that is wrong is said before any weight is
    read.

    \b
    worthit merge recipe.yml ./merged
    worthit merge recipe.yml --plan
    worthit judge --merge recipe.yml      # which method fits these checkpoints
    """
    if out is None and not is_plan:
        raise click.UsageError("Missing argument 'OUT': the folder to write, or --plan.")
    need_torch("merging")
    from worthit.merge.plan import plan_merge

    plan = plan_merge(recipe)
    _terminal.warn(plan.warnings)
    if is_plan:
        _show_plan(plan, is_json=is_json)
        return
    from worthit.merge.output import MAX_SHARD_BYTES
    from worthit.merge.run import merge

    assert out is not None
    try:
        done = merge(
            plan,
            out,
            seed=seed,
            max_shard_bytes=shard_bytes or MAX_SHARD_BYTES,
            on_progress=None if is_json else _progress,
        )
    except KeyboardInterrupt:
        _end_progress()
        _terminal.note("the same command goes on from here")
        raise
    if is_json:
        _terminal.show_json(done.to_json())
        return
    _end_progress()
    _terminal.show(_lines(done))


def need_torch(what: str) -> None:
    """Raise `MissingCapability` where torch is not installed."""
    try:
        import torch  # noqa: F401 - only whether it is there
    except ImportError:
        raise MissingCapability(
            f"{what} needs the extra 'merge'", "pip install 'worthit[merge]'"
        ) from None


def _show_plan(plan: Plan, *, is_json: bool) -> None:
    from worthit.merge.describe import plan_json, plan_lines

    if is_json:
        _terminal.show_json(plan_json(plan))
        return
    terminal = _terminal.of_stdout()
    _terminal.show(terminal.plain(line) for line in plan_lines(plan))


def _lines(done: Merged) -> list[str]:
    record: dict[str, Any] = done.to_json()
    resumed = f", {done.n_resumed} of them from before" if done.n_resumed else ""
    files = "1 file" if done.n_shards == 1 else f"{done.n_shards} files"
    return [
        f"{done.out}: {done.n_params:,} parameters in {done.n_tensors} tensors{resumed}",
        f"{record['method']} of {', '.join(record['models'])}: {done.n_bytes / 1e9:.3g} GB in "
        f"{files}, {done.seconds:.1f} s",
    ]


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        share = done / max(total, 1)
        print(
            f"\r{100 * share:3.0f} %  {done / 1e9:.2f} of {total / 1e9:.2f} GB",
            end="",
            file=sys.stderr,
        )


def _end_progress() -> None:
    if sys.stderr.isatty():
        print(file=sys.stderr)
