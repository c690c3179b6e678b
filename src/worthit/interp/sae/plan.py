"""What a training of autoencoders will take, measured before it starts.

On a CPU the model is the slow half: of the time that is given, what evaluation takes is put aside,
half of the rest goes to capturing and half to training. The plan is written down before anything is
done, so that the same command continues an interrupted run with the numbers that it began with.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worthit.errors import InputError
from worthit.interp.points import width as width_of
from worthit.interp.sae.base import SparseAutoencoder
from worthit.interp.sae.kinds import make_sae
from worthit.interp.sae.train import SaeRecipe, Training
from worthit.interp.stream import Source
from worthit.nn.decoder import Decoder
from worthit.train.history import disk_error

PLAN = "plan.json"
# Of a stated time: what a busy machine takes, and of the rest without evaluation, capturing.
SPARE, CAPTURE_SHARE = 0.1, 0.5
# A run is evaluated on so much text that it has not seen; less, down to a pass, where that would
# take more than this share of the time.
N_EVALUATED, EVALUATE_SHARE = 64, 0.15
# Of the model as it is, through the reconstruction, and without the point.
PASSES = 3


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
    """What will be done, and what it takes.

    Attributes:
        n_shards: what was captured, where time was up before all of it was.
    """

    n_sequences: int
    n_rows: int
    steps: int
    capture_s: float
    train_s: float
    disk_bytes: int
    train_bytes: int
    n_evaluated: int = N_EVALUATED
    evaluate_s: float = 0.0
    n_shards: int | None = None

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.capture_s + self.train_s + self.evaluate_s


@dataclass(frozen=True)
class Speeds:
    """Rows captured a second, seconds of an update of all autoencoders and of a whole pass."""

    rows_per_s: float
    step_s: float
    pass_s: float


def plan_run(
    model: Decoder,
    ids: Tensor,
    settings: Settings,
    *,
    seconds: float | None = None,
    n_tokens: int | None = None,
    steps: int | None = None,
    n_held_out: int = N_EVALUATED,
) -> Plan:
    """Measure all parts for a few seconds, and divide the time; or take what is given.

    Args:
        ids: `(n, length)`, all the text there is.
        seconds: for everything.
        n_tokens: rows to capture, in place of what the time allows.
        steps: updates, in place of what the time allows.
        n_held_out: sequences that it may be evaluated on.

    Raises:
        InputError: neither a time nor both numbers.
    """
    if seconds is None and (n_tokens is None or steps is None):
        raise InputError("give a time (--minutes), or both --tokens and --steps")
    started = time.monotonic()
    source = source_of(model, ids, settings)
    speeds = measured(source, settings)
    # Each pass reads all of it for every autoencoder; the rows themselves are captured once.
    capture_each = source.rows_each / speeds.rows_per_s
    evaluate_each = capture_each + PASSES * len(settings.kinds) * speeds.pass_s / source.batch
    n_evaluated, budget = min(N_EVALUATED, n_held_out), None
    if seconds is not None:
        seconds = max(seconds - (time.monotonic() - started), 0.0)
        n_evaluated = n_in(EVALUATE_SHARE * seconds, evaluate_each, source.batch, n_evaluated)
        budget = max((seconds - n_evaluated * evaluate_each) * (1 - SPARE), 0.0)
    if n_tokens is None:
        assert budget is not None
        n_tokens = int(budget * CAPTURE_SHARE * speeds.rows_per_s)
    n_sequences = min(max(n_tokens // source.rows_each, source.batch), len(ids))
    n_sequences = max(n_sequences // source.batch, 1) * source.batch
    n_rows = n_sequences * source.rows_each
    capture_s = n_rows / speeds.rows_per_s
    if steps is None:
        assert budget is not None
        steps = max(int((budget - capture_s) / speeds.step_s), 100)
    d = width_of(model, settings.at)
    # Weights, gradients and two moments, in fp32; and one batch of pre-activations with two copies.
    held = len(settings.kinds) * 4 * 4 * 2 * d * settings.width
    return Plan(
        n_sequences=n_sequences,
        n_rows=n_rows,
        steps=steps,
        capture_s=capture_s,
        train_s=steps * speeds.step_s,
        disk_bytes=n_rows * d * 2,
        train_bytes=held + 3 * 4 * settings.batch * settings.width,
        n_evaluated=n_evaluated,
        evaluate_s=n_evaluated * evaluate_each,
    )


def n_in(seconds: float, each: float, batch: int, most: int) -> int:
    """How many sequences fit in a time, in whole batches: one at least, `most` at most."""
    return min(max(int(seconds / each) // batch, 1) * batch, most)


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


def measured(source: Source, settings: Settings) -> Speeds:
    """How fast the model captures, the autoencoders learn, and the model runs to its end."""
    some = source.ids[: source.batch]
    (rows,) = source.of(some).values()
    n, capture_s = _repeated(lambda: source.of(some), 1.0, 2)
    rows_per_s = n * len(rows) / capture_s
    with torch.no_grad():
        n, passes_s = _repeated(lambda: source.model(some), 0.5, 1)
    rows = rows.repeat(-(-settings.batch // len(rows)), 1)[: settings.batch]
    recipe = SaeRecipe(steps=1000, lr=settings.lr)
    trainings = [Training(sae, recipe) for sae in saes_of(source.model, settings).values()]
    for training in trainings:
        training.start(rows)
        training.update(rows)
    n_steps, train_s = _repeated(lambda: [t.update(rows) for t in trainings], 1.0, 3)
    # A last pass may be smaller than the others where there is little text.
    pass_s = passes_s / n * source.batch / len(some)
    return Speeds(rows_per_s, train_s / n_steps, pass_s)


def _repeated(call: Callable[[], object], seconds: float, least: int) -> tuple[int, float]:
    """How often in so many seconds, and in how many it was."""
    started, n = time.perf_counter(), 0
    while time.perf_counter() - started < seconds or n < least:
        call()
        n += 1
    return n, time.perf_counter() - started


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
    _write(path, {**asked, "plan": asdict(plan)})
    return plan


def rewrite(folder: Path, plan: Plan) -> None:
    """Write down that it became another one on the way."""
    path = folder / PLAN
    if path.exists():
        _write(path, {**json.loads(path.read_text()), "plan": asdict(plan)})


def _write(path: Path, record: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.part")
        beside.write_text(json.dumps(record, indent=1))
        beside.replace(path)
    except OSError as error:
        raise disk_error(path, error) from error
