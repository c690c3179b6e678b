"""Time training of sparse autoencoders beside `sae_lens`: tokens a second at equal loss.

    python benchmarks/learning/bench_sae.py
    python benchmarks/learning/bench_sae.py --quick --threads 1      # a try

Both sides train on the same activations (SmolLM2's shapes, planted directions, unless --activations
names a folder that `worthit sae train --keep` left), with the same weights at the start, batches in
the same order, the same Adam, bounded gradients and window of dead latents. Before anything is
timed, both train for a stretch and must arrive at the same loss. Rounds are interleaved; what is
timed is updates alone. The number of latents that are on when the clock starts is reported: what is
fast where few are is not where all are.

The limit is what no implementation can leave out, at the rate of one plain product of these shapes:
encoding, and the encoder's gradient; for kinds whose latents are all on at first, decoding and both
gradients that pass it too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from comparison import about, parser, summary, timed, write
from noise import Others
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
# Products of `(batch, d_in, width)` that an update cannot do without; with few latents on, all that
# follows the encoder is small.
PRODUCTS = {"topk": 2, "batchtopk": 2, "standard": 5, "jumprelu": 5, "gated": 5}
LR, DEAD_AFTER = 1e-3, 50
# Losses after the first stretch may differ by rounding, which training amplifies.
SAME_LOSS = 0.01
QUICK = {"width": 256, "channels": 64, "batch": 128, "rows": 1024, "warm_up": 20, "steps": 3}


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


def compare(kind: str, x: Tensor, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """Losses first, then rounds in turns; a case of both sides."""
    torch.manual_seed(0)
    sae = make_sae(kind, d_in=x.shape[1], width=options.width, **KINDS[kind][0])
    theirs = Theirs(sae, kind, x, options.batch)
    ours = Ours(sae, x, options.batch)
    sides: dict[str, Any] = {"worthit": ours, "sae_lens": theirs}
    losses = {name: [side.update() for _ in range(options.warm_up)] for name, side in sides.items()}
    last = {name: statistics.fmean(found[-5:]) for name, found in losses.items()}
    if abs(last["worthit"] / last["sae_lens"] - 1) > SAME_LOSS:
        raise SystemExit(f"{kind}: losses differ, {last}: nothing is timed")
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(options.rounds):
        for name in sorted(sides, reverse=bool(i % 2)):
            started, used = time.perf_counter(), time.process_time()
            for _ in range(options.steps):
                sides[name].update()
            wall[name].append((time.perf_counter() - started) / options.steps)
            cpu[name].append((time.process_time() - used) / options.steps)
    limit = PRODUCTS[kind] * 2 * options.batch * x.shape[1] * options.width / rate
    case = {}
    for name in sides:
        bases = {base: times for base, times in wall.items() if base != name}
        case[name] = {
            **summary(wall[name], bases),
            "cpu_s": statistics.median(cpu[name]),
            "tokens_per_s": options.batch / statistics.median(wall[name]),
            "loss": last[name],
            "limit_s": limit,
        }
    case["worthit"]["latents_on"] = ours.mean_active
    return case


def rate_of(options: argparse.Namespace) -> float:
    """FLOP/s of a plain product of the shapes of an encoder, at its best of several."""
    x, w = (
        torch.randn(options.batch, options.channels),
        torch.randn(options.width, options.channels),
    )
    flops = 2 * options.batch * options.channels * options.width
    return flops / min(timed(lambda: x @ w.T) for _ in range(10))


def main() -> int:
    made = parser(__doc__, rounds=7)
    made.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    made.add_argument("--activations", type=Path, help="a folder of captured activations")
    made.add_argument("--width", type=int, default=4096)
    made.add_argument("--channels", type=int, default=576)
    made.add_argument("--batch", type=int, default=1024)
    made.add_argument("--rows", type=int, default=32 * 1024)
    made.add_argument("--warm-up", type=int, default=60, help="updates that compare losses")
    made.add_argument("--steps", type=int, default=5, help="updates a round")
    options = made.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    others = Others()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    try:
        import sae_lens  # noqa: F401 - whether it is there
    except ImportError:
        print("bench_sae: NOT MEASURED, sae_lens is not installed (make setup)")
        return 3
    x = activations_of(options.activations, options.rows, options.channels)
    rate = rate_of(options)
    record: dict[str, Any] = {
        "schema": "worthit.bench-sae/2",
        "about": about(options, "torch", "sae-lens"),
        "activations": str(options.activations.name) if options.activations else "planted",
        "shape": {"d_in": x.shape[1], "width": options.width, "batch": options.batch},
        "product_flops_per_s": rate,
        "cases": {},
    }
    print(f"a plain product: {rate / 1e9:.0f} GFLOP/s, {options.threads} thread(s)")
    print(
        f"{'kind':12}{'worthit':>14}{'sae_lens':>14}{'faster':>9}{'limit':>8}{'loss':>12}{'on':>9}"
    )
    for kind in options.kinds:
        case = compare(kind, x, rate, options)
        record["cases"][kind] = case
        ours, theirs = case["worthit"], case["sae_lens"]
        print(
            f"{kind:12}{ours['tokens_per_s']:>10,.0f} t/s{theirs['tokens_per_s']:>10,.0f} t/s"
            f"{ours['speedup_over']['sae_lens']['median']:>8.2f}x"
            f"{ours['limit_s'] / ours['median_s']:>8.0%}{ours['loss']:>12.4f}"
            f"{ours['latents_on']:>9.0f}",
            flush=True,
        )
    write(record, options, "sae", others)
    return 0


if __name__ == "__main__":
    sys.exit(main())
