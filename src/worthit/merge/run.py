"""Run a merge: tensor by tensor, a few rows at a time, into a folder that any loader reads.

Memory does not grow with the checkpoints: of each one a few rows are held. What the output folder
has besides weights comes from the base (or the first model): its config with the number of layers
and tokens brought up to date, its tokenizer, and a card with the recipe.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worthit.errors import InputError
from worthit.merge.beside import write_beside
from worthit.merge.files import TORCH, Files
from worthit.merge.members import open_rows
from worthit.merge.output import MAX_SHARD_BYTES, Output, Slot, n_bytes_of
from worthit.merge.plan import Job, Plan, plan_merge
from worthit.merge.stack import PIECE, Rows, Stack
from worthit.merge.tokens import AlignedRows

# Bytes compared or copied at once.
COPY_BYTES = 1 << 20
# Tensors worked on at once, and waiting for a worker, at most.
MAX_WORKERS, WAITING = 8, 4


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What a merge did.

    Attributes:
        out: the folder.
        n_tensors, n_params, n_bytes: of the output's weights.
        n_read: bytes read from checkpoints, each pass counted.
        n_resumed: tensors that an interrupted merge had written already.
        seconds: from the first weight to the last byte.
    """

    out: Path
    plan: Plan
    seed: int
    n_tensors: int
    n_params: int
    n_bytes: int
    n_shards: int
    n_resumed: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The record that `worthit merge --json` prints."""
        recipe = self.plan.recipe
        return {
            "schema": "worthit.merge/1",
            "out": str(self.out),
            "method": recipe.method.id,
            "models": list(recipe.models),
            "base_model": recipe.base_model,
            "seed": self.seed if recipe.method.is_random else None,
            "n_layers": self.plan.n_layers or self.plan.donor.n_layers,
            "n_tensors": self.n_tensors,
            "n_params": self.n_params,
            "n_bytes": self.n_bytes,
            "n_shards": self.n_shards,
            "n_resumed": self.n_resumed,
            "seconds": self.seconds,
            "warnings": list(self.plan.warnings),
        }


def merge(
    recipe: str | Path | Plan,
    out: str | Path,
    *,
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    n_workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Merged:
    """Merge checkpoints by a recipe into the folder `out`.

    Args:
        recipe: a YAML file, or a plan made of one.
        out: a folder that does not exist yet, or is empty.
        seed: of DARE and DELLA; the same seed drops the same entries.
        max_shard_bytes: of one file of the output.
        n_workers: tensors merged at once, each in a thread of its own with a few rows in memory;
            by default as many as torch has threads, and at most 8.
        on_progress: called with bytes written and bytes in all.

    Raises:
        InputError: everything that is wrong with the recipe, or a weight that is no number.
        WorthitError: no space left, or the folder cannot be written.
    """
    out = Path(out)
    plan = recipe if isinstance(recipe, Plan) else plan_merge(recipe)
    started = time.perf_counter()
    with (
        torch.inference_mode(),
        Files() as files,
        Output(out, plan, seed=seed, max_shard_bytes=max_shard_bytes) as output,
    ):
        done = sum(s.n_bytes for s in output.slots if s.job.name in output.resumed)
        total = sum(s.n_bytes for s in output.slots)

        def work(slot: Slot) -> Slot:
            output.write(slot, merged_pieces(slot.job, plan, files, seed=seed))
            return slot

        for slot in _in_order(work, output.todo(), n_workers or n_workers_by_default()):
            output.written(slot)
            done += slot.n_bytes
            if on_progress is not None:
                on_progress(done, total)
        write_beside(output.folder, plan, seed=seed, name=out.absolute().name)
        output.finish()
    return Merged(
        out=out,
        plan=plan,
        seed=seed,
        n_tensors=len(plan.jobs),
        n_params=sum(torch.Size(job.shape).numel() for job in plan.jobs),
        n_bytes=sum(n_bytes_of(job) for job in plan.jobs),
        n_shards=len(output.shards),
        n_resumed=len(output.resumed),
        seconds=time.perf_counter() - started,
    )


def n_workers_by_default() -> int:
    """As many as torch has threads, up to what a disk keeps busy."""
    return min(int(torch.get_num_threads()), MAX_WORKERS)


def _in_order(
    work: Callable[[Slot], Slot], slots: Iterable[Slot], n_workers: int
) -> Iterator[Slot]:
    """What `work` returns for each slot, in order; `n_workers` slots are worked on at once.

    Tensors are small and many: one thread each is more than all threads on a few rows.
    """
    if n_workers == 1:
        yield from map(work, slots)
        return
    n_threads = torch.get_num_threads()

    def start() -> None:
        torch.set_num_threads(1)

    def inside(slot: Slot) -> Slot:
        with torch.inference_mode():
            return work(slot)

    pool = ThreadPoolExecutor(n_workers, initializer=start)
    try:
        waiting: deque[Future[Slot]] = deque()
        for slot in slots:
            waiting.append(pool.submit(inside, slot))
            if len(waiting) > WAITING * n_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)


def merged_pieces(job: Job, plan: Plan, files: Files, *, seed: int) -> Iterator[Tensor]:
    """One tensor of the output, a few rows at a time, in the format that is written."""
    if job.is_copied:
        yield from _copied(job, files)
        return
    result, written = TORCH[job.dtype], TORCH[job.out_dtype]
    rows = _rows(job, plan, files)
    stack = Stack(
        models=tuple(r for name, r in rows.items() if name != job.base),
        base=None if job.base is None else rows[job.base],
        name=job.name,
        piece=PIECE,
    )
    method = plan.recipe.method
    chance = {"seed": seed} if method.is_random else {}
    for merged in method.merge(stack, **job.arguments, **chance):
        yield merged.to(result).to(written).contiguous()


def _rows(job: Job, plan: Plan, files: Files) -> Mapping[str, Rows]:
    """The rows of each input, in the order of the recipe."""
    dtype = TORCH[job.dtype]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rows: dict[str, Rows] = {}
    for model, stored in job.inputs:
        rows[model] = open_rows(plan.members[model], files, stored, dtype=dtype, wide=wide)
    if not job.is_vocabulary:
        return rows
    assert plan.tokens is not None
    alignment = plan.tokens.alignment
    return {name: AlignedRows(name, rows, alignment) for name in rows}


def _copied(job: Job, files: Files) -> Iterator[Tensor]:
    """Bytes of a tensor that is no number to mix, the same in all inputs."""
    (first, stored), *others = job.inputs
    for start in range(0, stored.n_bytes, COPY_BYTES):
        n = min(COPY_BYTES, stored.n_bytes - start)
        data = files.read(stored, start, n)
        for other, tensor in others:
            if not torch.equal(data, files.read(tensor, start, n)):
                raise InputError(
                    f"tensor {job.name}: stored as {stored.dtype}, which cannot be merged, and "
                    f"different in {first} and {other}"
                )
        yield data
