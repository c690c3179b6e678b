"""From a model and a text to autoencoders, within a time that is said before.

    measure how fast both halves are -> plan -> capture activations -> train on them -> evaluate

On a CPU the model is the slow half: half of the time it runs, the other half its activations, kept
on disk in bf16, are trained on several times over in a new order. The plan is written down first,
so that the same command continues an interrupted run with the numbers that it began with.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from worthit.errors import InputError
from worthit.interp.points import width as width_of
from worthit.interp.sae.base import SparseAutoencoder
from worthit.interp.sae.files import save_sae
from worthit.interp.sae.kinds import make_sae
from worthit.interp.sae.metrics import fit_of, loss_recovered
from worthit.interp.sae.train import SaeRecipe, Training, train_together
from worthit.interp.shards import Store, write_activations
from worthit.interp.stream import Rows, Source, mixed, usual
from worthit.nn.decoder import Decoder
from worthit.train.checkpoint import load_checkpoint, save_checkpoint
from worthit.train.history import disk_error

PLAN, RECORD = "plan.json", "training.json"
ACTIVATIONS, SPARSITY = "activations", "sparsity.safetensors"
# Of a stated time: what capturing gets, and what loading, evaluation and a busy machine take.
CAPTURE_SHARE, SPARE = 0.5, 0.15
SECONDS_BETWEEN_CHECKPOINTS = 60.0
# A run is evaluated on so much text that it has not seen.
N_EVALUATED = 64

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is asked for; equal settings continue a run.

    Attributes:
        at: the point.
        kinds: options of each autoencoder by its name; `kind` is one of them.
        width: latents of each.
        batch: rows of an update.
        length: tokens of a sequence.
        skip: first tokens of a sequence that are left out.
        target_l0: latents on that penalties are turned to; None leaves them as they are.
        lr, seed: of the training.
    """

    at: str
    kinds: dict[str, dict[str, Any]]
    width: int
    batch: int = 1024
    length: int = 128
    skip: int = 1
    target_l0: float | None = None
    lr: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """What will be done, and what it takes."""

    n_sequences: int
    n_rows: int
    steps: int
    capture_s: float
    train_s: float
    disk_bytes: int
    train_bytes: int


def plan_run(
    model: Decoder,
    ids: Tensor,
    settings: Settings,
    *,
    seconds: float | None = None,
    n_tokens: int | None = None,
    steps: int | None = None,
) -> Plan:
    """Measure both halves for a few seconds, and divide the time; or take what is given.

    Args:
        ids: `(n, length)`, all the text there is.
        seconds: for everything.
        n_tokens: rows to capture, in place of what the time allows.
        steps: updates, in place of what the time allows.

    Raises:
        InputError: neither a time nor both numbers.
    """
    if seconds is None and (n_tokens is None or steps is None):
        raise InputError("give a time (--minutes), or both --tokens and --steps")
    source = source_of(model, ids, settings)
    rows_per_s, step_s = _speeds(source, settings)
    budget = None if seconds is None else seconds * (1 - SPARE)
    if n_tokens is None:
        assert budget is not None
        n_tokens = int(budget * CAPTURE_SHARE * rows_per_s)
    n_sequences = min(max(n_tokens // source.rows_each, source.batch), len(ids))
    n_sequences = max(n_sequences // source.batch, 1) * source.batch
    n_rows = n_sequences * source.rows_each
    capture_s = n_rows / rows_per_s
    if steps is None:
        assert budget is not None
        steps = max(int((budget - capture_s) / step_s), 100)
    d = width_of(model, settings.at)
    # Weights, gradients and two moments, in fp32; and one batch of pre-activations with two copies.
    held = len(settings.kinds) * 4 * 4 * 2 * d * settings.width
    return Plan(
        n_sequences=n_sequences,
        n_rows=n_rows,
        steps=steps,
        capture_s=capture_s,
        train_s=steps * step_s,
        disk_bytes=n_rows * d * 2,
        train_bytes=held + 3 * 4 * settings.batch * settings.width,
    )


def source_of(model: Decoder, ids: Tensor, settings: Settings) -> Source:
    """The activations of `ids` at the settings' point."""
    return Source(model, ids, (settings.at,), skip=settings.skip)


def saes_of(model: Decoder, settings: Settings) -> dict[str, SparseAutoencoder]:
    """Fresh ones, by name."""
    d, made = width_of(model, settings.at), {}
    for name, options in settings.kinds.items():
        torch.manual_seed(settings.seed)
        kind, rest = options["kind"], {k: v for k, v in options.items() if k != "kind"}
        made[name] = make_sae(kind, d_in=d, width=settings.width, **rest)
    return made


def _speeds(source: Source, settings: Settings) -> tuple[float, float]:
    """Rows a second of the model, and seconds of one update of all autoencoders."""
    some = source.ids[: source.batch]
    (rows,) = source.of(some).values()
    started, n = time.perf_counter(), 0
    while time.perf_counter() - started < 1.0 or n < 2:
        source.of(some)
        n += 1
    rows_per_s = n * len(rows) / (time.perf_counter() - started)
    rows = rows.repeat(-(-settings.batch // len(rows)), 1)[: settings.batch]
    recipe = SaeRecipe(steps=1000, lr=settings.lr)
    trainings = [Training(sae, recipe) for sae in saes_of(source.model, settings).values()]
    for training in trainings:
        training.start(rows)
        training.update(rows)
    started, n = time.perf_counter(), 0
    while time.perf_counter() - started < 1.0 or n < 3:
        for training in trainings:
            training.update(rows)
        n += 1
    return rows_per_s, (time.perf_counter() - started) / n


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
) -> dict[str, Any]:
    """Capture, train, evaluate and write; what is there already is continued.

    Returns:
        The record of the run: settings, plan, and what each autoencoder is worth on `held_out`.
    """
    say = on_progress or (lambda what, done, of: None)
    source = source_of(model, ids[: plan.n_sequences], settings)
    store = write_activations(
        source,
        folder / ACTIVATIONS,
        # A shard takes about as long as a checkpoint is apart.
        shard_bytes=max(plan.disk_bytes // 8, 1),
        on_progress=lambda done, of: say("sequences captured", done, of),
    )
    started = time.perf_counter()
    saes = train_on_store(store, saes_of(model, settings), settings, plan, folder, say)
    record: dict[str, Any] = {
        "schema": "worthit.sae/1",
        **(about or {}),
        "settings": asdict(settings),
        "plan": asdict(plan),
        "train_s": time.perf_counter() - started,
        "saes": {},
    }
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
        record["saes"][name] = {"folder": str(where), "kind": sae.kind, **metrics}
        say("autoencoders evaluated", i + 1, len(saes))
    (folder / RECORD).write_text(json.dumps(record, indent=1))
    return record


def train_on_store(
    store: Store,
    saes: Mapping[str, SparseAutoencoder],
    settings: Settings,
    plan: Plan,
    folder: Path,
    say: Progress,
) -> dict[str, Training]:
    """Train on kept activations for the plan's steps, from the last checkpoint on."""
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
    saved = time.monotonic()

    def on_step(step: Any) -> None:
        nonlocal saved
        say("steps", step.step, plan.steps)
        if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS or step.step == plan.steps:
            save_checkpoint(
                folder, {"trainings": {name: t.state() for name, t in trainings.items()}}
            )
            saved = time.monotonic()

    if done < plan.steps:
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


def agree(folder: Path, settings: Settings, make: Callable[[], Plan], text: str) -> Plan:
    """The plan of a run that was begun in `folder`, or a new one, written down.

    Raises:
        InputError: the folder has a run of other settings, or other things.
    """
    path = folder / PLAN
    asked = {"settings": asdict(settings), "text": text}
    if path.exists():
        before = json.loads(path.read_text())
        plan = Plan(**before.pop("plan"))
        # As JSON has them: tuples become lists.
        if before != json.loads(json.dumps(asked)):
            raise InputError(
                f"{folder}: has a run of other settings; give another folder, or delete it"
            )
        return plan
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty; give a new folder")
    plan = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f"{PLAN}.part"
        beside.write_text(json.dumps({**asked, "plan": asdict(plan)}, indent=1))
        beside.replace(path)
    except OSError as error:
        raise disk_error(path, error) from error
    return plan
