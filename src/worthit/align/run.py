"""A prepared job, done: the stages of its method, and the folder that comes of them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from worthit.align import feedback, stages
from worthit.align.job import Prepared, described
from worthit.align.lora import merge
from worthit.align.reward import RewardModel
from worthit.align.scores import score
from worthit.align.sequences import rows_of
from worthit.align.stages import Result, Said
from worthit.align.work import Work
from worthit.decode.tokenizer_files import copy_tokenizer
from worthit.errors import InputError
from worthit.nn.load import save_model
from worthit.train.loop import precision

OnWork = Callable[[str, int, int], None]
STAGES: dict[str, Callable[[Prepared, Work, Said], Result]] = {
    "dpo": stages.of_pairs,
    "ipo": stages.of_pairs,
    "simpo": stages.of_pairs,
    "orpo": stages.of_pairs,
    "kto": stages.of_ratings,
    "reward": stages.of_rewards,
    "spin": stages.of_self_play,
    "rlaif": feedback.of_feedback,
    "constitutional-ai": feedback.of_constitution,
    "grpo": stages.of_answers,
    "ppo": stages.of_answers,
}


def run(
    prepared: Prepared,
    *,
    on_work: OnWork | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Do a job, or what of it is missing, and return its record.

    Args:
        on_work: called with what is being done, how much of it is done, and of how much.
        say: told what is worth a line.

    Raises:
        InputError: the output is there, or another job's work is in its way.
        Diverged: the loss is no number.
        KeyboardInterrupt: stopped between two updates; the same call goes on.
    """
    job = prepared.job
    method = stages.method_of(prepared)
    about = {**described(job), "data_digest": digest(job.data), "recipe": repr(prepared.recipe)}
    work = Work(job.out, about)
    said = Said(on_work or (lambda what, done, of: None), say or (lambda text: None))
    if work.is_resumed:
        said.line(f"going on with {work.folder}")
    started = time.perf_counter()
    result = STAGES[job.method](prepared, work, said)
    record = {
        "out": str(job.out),
        "method": job.method,
        "settings": method,
        "model": job.source,
        "parameters_learned": prepared.estimate.n_learning,
        "lora": job.lora or None,
        "data": {
            "file": str(job.data),
            "shape": prepared.data.shape,
            "examples": len(prepared.data),
            "left_out": len(prepared.encoded.too_long),
        },
        "recipe": {
            "steps": prepared.recipe.n_steps,
            "batch_size": prepared.recipe.batch_size,
            "lr": prepared.recipe.lr,
            "precision": prepared.recipe.precision,
        },
        "seed": job.seed,
        **result.record,
        "predicted_s": prepared.estimate.seconds,
        "seconds": time.perf_counter() - started,
        "notes": [*prepared.warnings, *result.notes],
    }

    def save(folder: Path) -> None:
        model = result.model
        with torch.no_grad():
            if isinstance(model, RewardModel):
                merge(model.decoder)
                model.save(folder)
            else:
                merge(model)
                save_model(model, folder)
        copy_tokenizer(prepared.path, folder)

    work.finish(save, record)
    return record


def probe(prepared: Prepared) -> float | None:
    """Seconds of one update, from one that is tried on the first examples; nothing is changed.

    None for methods whose updates depend on what the model answers.
    """
    encoded, n = prepared.encoded, prepared.recipe.batch_size
    rows = [(p.prompt, c) for p in encoded.pairs[:n] for c in (p.chosen, p.rejected)]
    rows += [(r.prompt, r.completion) for r in encoded.rated[:n] for _ in (0, 1)]
    rows += [(d.prompt, d.completion) for d in encoded.shown[:n] for _ in (0, 1)]
    if not rows or prepared.job.method in ("grpo", "ppo"):
        return None
    size = max(1, 2 * n // prepared.recipe.n_accumulate)
    batch = rows_of(rows[:size]).to(prepared.model.device)
    started = time.perf_counter()
    with precision(prepared.recipe, prepared.model.device):
        loss = -score(prepared.model, batch).logps.mean()
    loss.backward()
    spent = time.perf_counter() - started
    prepared.model.zero_grad()
    return spent * 2 * n / min(size, len(rows))


def digest(path: Path) -> str:
    """Of a file, or of the files of a folder."""
    found = hashlib.blake2b(digest_size=16)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            try:
                found.update(file.name.encode() + file.read_bytes())
            except OSError as error:
                raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    return found.hexdigest()
