"""What the experiments on stretched rotary positions share: a small model, read four times as far.

A decoder of bytes is trained with rotary positions on windows of 32. Every arm then takes the same
weights, changes the rotation, and is tested on windows of 128: at once, and after a short
fine-tuning at that length, the same for every arm. The same last 16 bytes are scored at every
length. A context of 32 is small, and so is the model: what is compared is the order of the methods,
not how far any of them reaches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from worthit.lab import models, predict
from worthit.lab.claims import Metric
from worthit.lab.context import Context, Setting
from worthit.lab.experiment import Arm, Budget, Custom, Matched, Measures, Prediction
from worthit.lab.tasks import task
from worthit.lab.tasks.scores import evaluate
from worthit.spec.model import ModelSpec, PositionScaling, ScalingKind
from worthit.train import Recipe, Trained, seeded, train, train_many
from worthit.train.batch import Batch, Data

FACTOR = 4
HEAD_DIM = 16
N_SCORED = 16

AT_ONCE = Metric(id="loss_4x", name="loss at 4x, not fine-tuned", unit="nats", margin=0.02)
SHORT = Metric(id="loss_1x", name="loss at 1x, not fine-tuned", unit="nats", margin=0.02)
TUNED = Metric(id="tuned_4x", name="loss at 4x, fine-tuned", unit="nats", margin=0.02)
TUNED_SHORT = Metric(id="tuned_1x", name="loss at 1x, fine-tuned", unit="nats", margin=0.02)


def text(budget: Budget, factor: int) -> Data:
    """Windows of `factor` times the trained length; all end on the same scored bytes."""
    seq_len = budget.sizes["seq_len"]
    return task(
        "text",
        seq_len=factor * seq_len,
        reach=FACTOR * seq_len,
        n_scored=N_SCORED,
        max_megabytes=4,
        n_held_out=budget.sizes["windows"],
    )


def model(budget: Budget, scaling: PositionScaling | None = None) -> ModelSpec:
    """The small decoder, its rotary positions stretched or not."""
    d_model, seq_len = budget.sizes["d_model"], budget.sizes["seq_len"]
    spec = models.decoder(
        d_model,
        mixers=models.attention(d_model, head_dim=HEAD_DIM),
        vocab_size=256,
        context_len=FACTOR * seq_len,
        embedding_scale=d_model**0.5,
    )
    return replace(spec, position=replace(spec.position, scaling=scaling))


def scaling(budget: Budget, kind: ScalingKind, **changes: Any) -> PositionScaling:
    """Stretched fourfold by `kind`, with its published constants."""
    return PositionScaling(
        kind=kind, factor=FACTOR, original_context_len=budget.sizes["seq_len"], **changes
    )


def trained(context: Context) -> dict[int, Trained]:
    """The model of each seed, trained at the short length: what every arm starts from."""
    budget = context.budget
    recipe = Recipe(
        n_steps=budget.n_steps,
        batch_size=budget.batch_size,
        lr=budget.sizes["lr"],
        warmup_steps=budget.n_steps // 10,
        eval_every=0,
    )
    folder = context.folder / "base"
    runs = train_many(seeded(model(budget)), text(budget, 1), recipe, context.seeds, folder=folder)
    return {run.seed: run for run in runs}


def stretched(context: Context, arm: Arm, seed: int) -> PositionScaling | None:
    """The stretch of `arm`, searched for this seed's model where it has to be."""
    kind = arm.options["scaling"]
    if kind == "longrope":
        return searched(context, seed)
    return None if kind is None else scaling(context.budget, kind)


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Losses of one arm, before and after fine-tuning at four times the length."""
    budget, base = context.budget, context.shared[seed]
    spec = model(budget, stretched(context, arm, seed))
    stretched_model = base.into(seeded(spec)(seed))
    long, short = text(budget, FACTOR), text(budget, 1)

    def loss(data: Data) -> float:
        return loss_of(stretched_model, data.held_out("test"))

    found = {"loss_4x": loss(long), "loss_1x": loss(short)}
    context.tick(0.4, "fine-tuning")
    n_steps = budget.sizes["tuning_steps"]
    recipe = Recipe(
        n_steps=n_steps,
        batch_size=max(budget.batch_size // FACTOR, 1),
        lr=budget.sizes["lr"] / 10,
        warmup_steps=n_steps // 10,
        eval_every=0,
    )
    train(stretched_model, long, recipe, seed=seed)
    return {**found, "tuned_4x": loss(long), "tuned_1x": loss(short)}


def loss_of(of: nn.Module, batches: Iterable[Batch]) -> float:
    """Nats a byte."""
    return float(evaluate(of, batches).overall.loss)


def searched(context: Context, seed: int) -> PositionScaling:
    """LongRoPE's factors for one model, searched on validation windows (Ding et al. 2024, 3.3).

    A population that starts from no stretch, interpolation, NTK and YaRN is mutated; factors rise
    with the wavelength, between 1 and 1.25 times the stretch, as in the paper. Departures: no first
    tokens are left unstretched, and a factor on cos and sin is not used, which the paper's equation
    has not either.
    """
    budget = context.budget
    data = text(budget, FACTOR)
    base = context.shared[seed]
    generator = torch.Generator().manual_seed(seed)
    batches = list(data.held_out("validation"))
    n = HEAD_DIM // 2

    def tried(factors: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
        spec = model(budget, longrope(budget, factors))
        return loss_of(base.into(seeded(spec)(seed)), batches), factors

    ntk = tuple(float(FACTOR) ** (i / (n - 1)) for i in range(n))
    ramp = tuple(1 + (FACTOR - 1) * min(i / 2, 1.0) for i in range(n))
    known = [tried(f) for f in ((1.0,) * n, (float(FACTOR),) * n, ntk, ramp)]
    for _ in range(budget.sizes["searches"]):
        known.sort()
        parent = known[int(torch.randint(min(4, len(known)), (), generator=generator))][1]
        noise = (0.3 * torch.randn(n, generator=generator)).exp().tolist()
        mutated = sorted(
            min(max(f * e, 1.0), 1.25 * FACTOR) for f, e in zip(parent, noise, strict=True)
        )
        known.append(tried(tuple(mutated)))
    return longrope(budget, min(known)[1])


def longrope(budget: Budget, factors: tuple[float, ...]) -> PositionScaling:
    """Nothing changed within the trained length, `factors` beyond."""
    assert all(math.isfinite(f) for f in factors)
    return scaling(
        budget,
        "longrope",
        attention_factor=1.0,
        short_factors=(1.0,) * len(factors),
        long_factors=factors,
    )


def arm(kind: ScalingKind | None, label: str) -> Arm:
    """The arm of a stretch; `None` reads on with the rotation as it was trained."""
    return Arm(id=kind or "plain", label=label, options={"scaling": kind})


def unseen(setting: Setting) -> Iterator[Prediction]:
    """Cost sees no quality: a stretch is a table of other frequencies."""
    yield from predict.unseen(setting, "loss_4x", "tuned_4x")


HOW = Custom(run=run)
MATCHED = Matched(
    what=("nothing",),
    because="every arm has the same weights, fine-tuned on the same windows in the same order; the "
    "rotation alone differs",
)
QUICK = Budget(
    n_seeds=5,
    n_steps=600,
    batch_size=16,
    sizes={
        "seq_len": 32,
        "d_model": 32,
        "windows": 128,
        "lr": 1e-2,
        "tuning_steps": 40,
        "searches": 40,
    },
    seconds=3.0,
)
BUDGETS = {
    "smoke": replace(
        QUICK,
        n_seeds=3,
        n_steps=60,
        sizes={**QUICK.sizes, "windows": 32, "tuning_steps": 5, "searches": 5},
        seconds=1.0,
    ),
    "quick": QUICK,
    "full": replace(
        QUICK,
        n_seeds=8,
        n_steps=4000,
        sizes={**QUICK.sizes, "seq_len": 64, "d_model": 64, "tuning_steps": 300, "searches": 200},
        seconds=60.0,
    ),
}
