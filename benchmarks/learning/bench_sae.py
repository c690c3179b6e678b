"""Time training of sparse autoencoders beside `sae_lens`: tokens a second at equal loss.

    python benchmarks/learning/bench_sae.py --out benchmarks/results/sae.json

Both sides train on the same activations (SmolLM2's shapes, planted directions, unless --activations
names a folder that `worthit sae train --keep` left), with the same weights at the start, batches in
the same order, the same Adam, bounded gradients and window of dead latents. Before anything is
timed, both train for a stretch and must arrive at the same loss. Rounds are interleaved; what is
timed is updates alone, by the wall clock, with the processor's own clock beside it. The number of
latents that are on when the clock starts is reported: what is fast where few are is not where all
are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worthit.interp.sae.base import SparseAutoencoder
from worthit.interp.sae.kinds import make_sae
from worthit.interp.sae.train import SaeRecipe, Training

# Options of each kind, ours and theirs; what stands in neither is the same by default.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "topk": ({"k": 32}, {"k": 32}),
    "batchtopk": ({"k": 32}, {"k": 32}),
    "standard": ({"penalty": 5.0}, {"l1_coefficient": 5.0}),
    "jumprelu": (
        {"penalty": 1.0, "bandwidth": 0.2, "init_threshold": 0.1},
        {"l0_coefficient": 1.0, "jumprelu_bandwidth": 0.2, "jumprelu_init_threshold": 0.1},
    ),
    "gated": ({"penalty": 5.0}, {"l1_coefficient": 5.0}),
}
CLASSES = {"topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU"}
NAMES = {"W_enc": "encoder", "W_dec": "decoder"}
LR, DEAD_AFTER = 1e-3, 50
# Losses after the first stretch may differ by rounding, which training amplifies.
SAME_LOSS = 0.01


def activations_of(folder: Path | None, n: int, d: int) -> Tensor:
    """`(n, d)` rows of a mean length of sqrt(d)."""
    if folder is not None:
        from worthit.interp.shards import Store

        store = Store(folder)
        x = torch.cat([chunk[store.names[0]] for chunk in store.chunks(seed=0)])[:n]
    else:
        generator = torch.Generator().manual_seed(0)
        directions = torch.nn.functional.normalize(
            torch.randn(4 * d, d, generator=generator), dim=-1
        )
        on = torch.rand(n, 4 * d, generator=generator) < 32 / (4 * d)
        x = (on * (0.5 + torch.rand(n, 4 * d, generator=generator))) @ directions
    return x * (x.shape[1] ** 0.5 / x.norm(dim=-1).mean())


def batches(x: Tensor, size: int) -> Iterator[Tensor]:
    """The same order every time, over and over."""
    while True:
        yield from x.split(size)


class Ours:
    """Our training, an update a call."""

    def __init__(self, sae: SparseAutoencoder, x: Tensor, size: int) -> None:
        recipe = SaeRecipe(
            steps=10**9,
            lr=LR,
            warm_up=0.0,
            penalty_warm_up=0.0,
            decay=0.0,
            dead_after=DEAD_AFTER,
            resample_every=0,
            is_scaled=False,
        )
        self.training, self.rows = Training(sae, recipe), batches(x, size)
        self.mean_active = 0.0

    def update(self) -> float:
        """The loss before it."""
        made = self.training.update(next(self.rows))
        self.mean_active = made.mean_active
        return float(made.loss.detach())


class Theirs:
    """sae_lens' trainer, an update a call."""

    def __init__(self, sae: SparseAutoencoder, kind: str, x: Tensor, size: int) -> None:
        import sae_lens.saes as saes
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        name = CLASSES.get(kind, kind.capitalize())
        config = getattr(saes, f"{name}TrainingSAEConfig")(
            d_in=x.shape[1], d_sae=sae.config.width, **KINDS[kind][1]
        )
        made = getattr(saes, f"{name}TrainingSAE")(config)
        ours = dict(sae.named_parameters())
        with torch.no_grad():
            for theirs, p in made.named_parameters():
                q = ours[NAMES.get(theirs, theirs)]
                p.copy_(q.T if theirs == "W_enc" else q)
        self.trainer = SAETrainer(
            SAETrainerConfig(
                total_training_samples=10**9,
                train_batch_size_samples=size,
                lr=LR,
                lr_end=LR,
                dead_feature_window=DEAD_AFTER,
                logger=LoggingConfig(log_to_wandb=False),
            ),
            made,
            batches(x, size),
        )

    def update(self) -> float:
        """The loss before it."""
        trainer = self.trainer
        out = trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1
        return float(out.loss.detach())


def compare(kind: str, x: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Losses first, then rounds in turns."""
    torch.manual_seed(0)
    sae = make_sae(kind, d_in=x.shape[1], width=options.width, **KINDS[kind][0])
    theirs = Theirs(sae, kind, x, options.batch)
    ours = Ours(sae, x, options.batch)
    sides: dict[str, Any] = {"ours": ours, "sae_lens": theirs}
    losses = {name: [side.update() for _ in range(options.warm_up)] for name, side in sides.items()}
    last = {name: statistics.fmean(found[-5:]) for name, found in losses.items()}
    difference = abs(last["ours"] / last["sae_lens"] - 1)
    if difference > SAME_LOSS:
        sys.exit(f"{kind}: losses differ, {last}: nothing is timed")
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(options.rounds):
        for name in sorted(sides, reverse=bool(i % 2)):
            started, used = time.perf_counter(), time.process_time()
            for _ in range(options.steps):
                sides[name].update()
            wall[name].append((time.perf_counter() - started) / options.steps)
            cpu[name].append((time.process_time() - used) / options.steps)
    row: dict[str, Any] = {
        "loss": last,
        "loss_difference": difference,
        "latents_on": ours.mean_active,
    }
    for name in sides:
        row[name] = {
            "step_s": statistics.median(wall[name]),
            "step_cpu_s": statistics.median(cpu[name]),
            "tokens_per_s": options.batch / statistics.median(wall[name]),
            "steps_s": wall[name],
        }
    row["faster"] = statistics.median(
        t / o for t, o in zip(wall["sae_lens"], wall["ours"], strict=True)
    )
    row["faster_cpu"] = statistics.median(
        t / o for t, o in zip(cpu["sae_lens"], cpu["ours"], strict=True)
    )
    return row


def main() -> None:
    """All kinds, or those named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--activations", type=Path, help="a folder of captured activations")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--channels", type=int, default=576)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=32 * 1024)
    parser.add_argument("--warm-up", type=int, default=100, help="updates that compare losses")
    parser.add_argument("--steps", type=int, default=10, help="updates a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    try:
        import sae_lens
    except ImportError:
        print("bench_sae: sae_lens is not installed; skipped")
        return
    x = activations_of(options.activations, options.rows, options.channels)
    record: dict[str, Any] = {
        "schema": "worthit.bench-sae/1",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "n_cpus": os.cpu_count(),
        "threads": options.threads,
        "versions": {"torch": torch.__version__, "sae_lens": sae_lens.__version__},
        "activations": str(options.activations.name) if options.activations else "planted",
        "shape": {"d_in": x.shape[1], "width": options.width, "batch": options.batch},
        "rounds": options.rounds,
        "kinds": {},
    }
    print(f"{'kind':12}{'ours':>14}{'sae_lens':>14}{'faster':>9}{'by CPU':>9}{'loss':>12}{'on':>9}")
    for kind in options.kinds:
        row = compare(kind, x, options)
        record["kinds"][kind] = row
        print(
            f"{kind:12}{row['ours']['tokens_per_s']:>10,.0f} t/s"
            f"{row['sae_lens']['tokens_per_s']:>10,.0f} t/s{row['faster']:>8.2f}x"
            f"{row['faster_cpu']:>8.2f}x{row['loss']['ours']:>12.4f}{row['latents_on']:>9.0f}",
            flush=True,
        )
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
