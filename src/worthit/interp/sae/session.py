"""From a model and a text to autoencoders, within a time that is said before.

    measure how fast all parts are -> plan -> capture activations -> train on them -> evaluate

Activations are kept on disk in bf16 and trained on several times over, in a new order each time.
Where the machine turns out slower than it was measured, less is captured, the training is made
shorter (its rate still comes down at the end) and less is evaluated: what was said is kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from worthit.interp.sae.base import SparseAutoencoder
from worthit.interp.sae.files import save_sae
from worthit.interp.sae.metrics import fit_of, loss_recovered
from worthit.interp.sae.plan import Plan, Settings, n_in, rewrite, saes_of, source_of
from worthit.interp.sae.train import SaeRecipe, Step, Training, train_together
from worthit.interp.shards import Store, write_activations
from worthit.interp.stream import Rows, mixed, usual
from worthit.nn.decoder import Decoder
from worthit.train.checkpoint import load_checkpoint, save_checkpoint

RECORD = "training.json"
ACTIVATIONS, SPARSITY = "activations", "sparsity.safetensors"
SECONDS_BETWEEN_CHECKPOINTS = 60.0
# Of the time that is left when a run starts, evaluation put aside: capturing ends by then.
CAPTURE_AT_MOST = 0.65
# The pace of a training is that of so many steps.
PACE = 10

Progress = Callable[[str, int, int], None]


def run(
    model: Decoder,
    ids: Tensor,
    held_out: Tensor,
    settings: Settings,
    plan: Plan,
    folder: Path,
    *,
    about: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
    ends: float | None = None,
) -> dict[str, Any]:
    """Capture, train, evaluate and write; what is there already is continued.

    Args:
        ends: when it has to be over, on the clock of `time.monotonic`; None: as planned, however
            long that takes.

    Returns:
        The record of the run: settings, plan, and what each autoencoder is worth on `held_out`.
    """
    say = on_progress or (lambda what, done, of: None)
    started = time.monotonic()
    evaluates = None if ends is None else ends - plan.evaluate_s
    store, plan = _captured(model, ids, settings, plan, folder, say, evaluates)
    captured = time.monotonic()
    saes = train_on_store(
        store, saes_of(model, settings), settings, plan, folder, say, ends=evaluates
    )
    trained = time.monotonic()
    record: dict[str, Any] = {
        "schema": "worthit.sae/1",
        **(about or {}),
        "settings": asdict(settings),
        "plan": asdict(plan),
        "capture_s": captured - started,
        "train_s": trained - captured,
        "saes": {},
    }
    n = min(plan.n_evaluated, len(held_out))
    if ends is not None and plan.evaluate_s > 0:
        n = n_in(ends - trained, plan.evaluate_s / plan.n_evaluated, 8, n)
    held_out = held_out[:n]
    test = source_of(model, held_out, settings)
    chunks = [chunk[settings.at] for chunk in test.chunks()]
    for i, (name, training) in enumerate(saes.items()):
        sae = training.finish()
        fit, recovered = fit_of(sae, chunks), loss_recovered(model, sae, settings.at, held_out)
        where = folder if len(saes) == 1 else folder / name
        metrics = {**fit.to_json(), **recovered.to_json(), "n_resampled": training.n_resampled}
        details = {"model_name": (about or {}).get("model", ""), "context_size": settings.length}
        save_sae(sae, where, at=settings.at, about={**details, "metrics": metrics})
        density = training.counts / max(training.n_counted, 1)
        save_file({"sparsity": (density + 1e-10).log10().float()}, where / SPARSITY)
        found = {"folder": str(where), "kind": sae.kind, "steps": training.step, **metrics}
        record["saes"][name] = found
        say("autoencoders evaluated", i + 1, len(saes))
    record["evaluate_s"] = time.monotonic() - trained
    (folder / RECORD).write_text(json.dumps(record, indent=1))
    return record


def _captured(
    model: Decoder,
    ids: Tensor,
    settings: Settings,
    plan: Plan,
    folder: Path,
    say: Progress,
    ends: float | None,
) -> tuple[Store, Plan]:
    """The activations, fewer where they would leave no time to train, and the plan that follows."""
    started = time.monotonic()

    def is_enough(done: int, of: int) -> bool:
        if plan.n_shards is not None:
            return done >= plan.n_shards
        if ends is None:
            return False
        # Only whole shards count: the next one must end in time.
        took = time.monotonic() - started
        return took * (done + 1) / done > CAPTURE_AT_MOST * (ends - started)

    store = write_activations(
        source_of(model, ids[: plan.n_sequences], settings),
        folder / ACTIVATIONS,
        # A shard takes about as long as a checkpoint is apart.
        shard_bytes=max(plan.disk_bytes // 8, 1),
        on_progress=lambda done, of: say("sequences captured", done, of),
        is_enough=is_enough,
    )
    if store.n_rows < plan.n_rows and plan.n_shards is None:
        shorter = replace(plan, n_shards=len(store.paths))
        rewrite(folder, shorter)
        return store, shorter
    return store, plan


def train_on_store(
    store: Store,
    saes: Mapping[str, SparseAutoencoder],
    settings: Settings,
    plan: Plan,
    folder: Path,
    say: Progress,
    *,
    ends: float | None = None,
) -> dict[str, Training]:
    """Train on kept activations for the plan's steps, from the last checkpoint on.

    Args:
        ends: when to be over, on the clock of `time.monotonic`: steps are left out where they are
            slower than planned.
    """
    # In short runs too a latent must count as dead before they end.
    recipe = SaeRecipe(
        steps=plan.steps,
        lr=settings.lr,
        seed=settings.seed,
        dead_after=max(min(plan.steps // 10, 400), 20),
        resample_every=max(plan.steps // 8, 1),
        target_l0=settings.target_l0,
    )
    trainings = {name: Training(sae, recipe) for name, sae in saes.items()}
    before = load_checkpoint(folder)
    if before is not None:
        for name, training in trainings.items():
            training.restore(before["trainings"][name])
    done = min(t.step for t in trainings.values())
    stream = batches_of(store, settings.batch, seed=settings.seed, skip=done)
    started = saved = time.monotonic()

    def on_step(step: Step) -> None:
        nonlocal saved
        now, n = time.monotonic(), step.step - done
        if ends is not None and (n >= PACE or now > ends):
            possible = step.step + int((ends - now) / max((now - started) / n, 1e-6))
            for training in trainings.values():
                training.shorten(possible)
        steps = max(t.recipe.steps for t in trainings.values())
        say("steps", step.step, steps)
        if now - saved > SECONDS_BETWEEN_CHECKPOINTS or step.step >= steps:
            save_checkpoint(
                folder, {"trainings": {name: t.state() for name, t in trainings.items()}}
            )
            saved = time.monotonic()

    if any(t.step < t.recipe.steps for t in trainings.values()):
        train_together(trainings, stream, on_step=on_step)
    return trainings


def batches_of(store: Store, batch: int, *, seed: int, skip: int = 0) -> Iterator[Rows]:
    """Batches of a store, epoch after epoch; the first `skip` are passed over."""
    epoch = 0
    while True:
        buffer = min(65_536, max(store.n_rows, 1))
        chunks = (without_sinks(c) for c in store.chunks(rows=4096, seed=seed + epoch))
        for rows in mixed(chunks, batch, buffer=buffer, seed=seed + epoch):
            if skip:
                skip -= 1
                continue
            yield rows
        epoch += 1


def without_sinks(chunk: Rows) -> Rows:
    """The rows of a chunk that are sinks at none of its points."""
    keep = torch.stack([usual(rows) for rows in chunk.values()]).all(0)
    return {name: rows[keep] for name, rows in chunk.items()}
