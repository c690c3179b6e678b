"""Training the arms of an experiment: the same care for each, and the same seeds.

Every learning rate of an arm's grid is tried on tuning seeds, which are evaluated nowhere else; the
rate with the lowest mean validation loss trains the evaluation seeds, and the test split is read
once, at the end. A best rate at the edge of its grid is flagged: the arm may be tuned badly.

A run that diverges is a result. It is scored as what it is worth, a uniform guess, and counted in
the metric `diverged`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Measures, Training, Trial
from worthit.lab.jobs import Job, Tick
from worthit.lab.runs import Record, Run
from worthit.lab.speed import speed_jobs
from worthit.lab.tasks.scores import evaluate
from worthit.train import (
    Data,
    Progress,
    Recipe,
    Trained,
    Update,
    next_token_loss,
    seeded,
    train_many,
)

# Far from the seeds that are evaluated, 0 to n_seeds - 1.
FIRST_TUNING_SEED = 10_000
# Seeds train side by side; one more costs about this share of the first.
COST_OF_ANOTHER_SEED = 0.35
PROBE_STEPS = 2
# What a probe does not see: the optimizer, drawing batches, evaluating; and each job's start.
STEP_OVERHEAD, JOB_OVERHEAD_S = 1.4, 0.6
Builder = Callable[[Context, Arm], Callable[[int], nn.Module]]


def training_jobs(how: Training, context: Context, run: Run, seeds: Sequence[int]) -> list[Job]:
    """First every learning rate of every arm, then the evaluation seeds of each arm together."""
    tuning, training = [], []
    step_s = {}
    for arm in context.setting.experiment.arms:
        missing = run.missing(arm.id, seeds)
        if not missing:
            continue
        step_s[arm.id] = probe(how, context, arm)
        n_tuning, n_steps = _tuning_steps(context, arm), _recipe(how, context, arm).n_steps
        tuning += [
            Job(
                f"{arm.id}, learning rate {rate:g}",
                _seconds(step_s[arm.id], n_tuning, context.budget.n_tuning_seeds),
                0,
                partial(_tune, how, context, run, arm, rate),
            )
            for rate in rates_to_try(context, arm)
            if run.tuned(arm.id, rate) is None
        ]
        training.append(
            Job(
                f"{arm.id}, {_seeds(missing)}",
                _seconds(step_s[arm.id], n_steps, len(missing)),
                len(missing),
                partial(_train, how, context, run, arm, missing),
            )
        )
    return [*tuning, *training, *speed_jobs(context, run, seeds, build_of, step_s)]


def rates_to_try(context: Context, arm: Arm) -> tuple[float, ...]:
    """The grid of `arm`; nothing to try where it has one rate."""
    grid = context.setting.experiment.grid(arm, context.budget)
    return grid if len(grid) > 1 else ()


def tuning_of(context: Context, run: Run, arm: Arm) -> Record:
    """What tuning found: every rate with its losses, the best one, whether that is at an edge."""
    grid = context.setting.experiment.grid(arm, context.budget)
    tried = [run.tuned(arm.id, rate) for rate in rates_to_try(context, arm)]
    results = [
        {"learning_rate": t["learning_rate"], "losses": t["losses"]} for t in tried if t is not None
    ]
    if not results:
        return {"best": grid[0], "is_edge": False, "is_tuned": False, "results": []}

    def mean(result: Record) -> float:
        # A rate at which a seed diverges is no rate.
        losses = [math.inf if loss is None else loss for loss in result["losses"]]
        return sum(losses) / len(losses)

    best = min(results, key=mean)["learning_rate"]
    is_edge = best in (grid[0], grid[-1])
    return {"best": best, "is_edge": is_edge, "is_tuned": True, "results": results}


def _tune(how: Training, context: Context, run: Run, arm: Arm, rate: float, tick: Tick) -> None:
    budget = context.budget
    seeds = [FIRST_TUNING_SEED + i for i in range(budget.n_tuning_seeds)]
    recipe = _recipe(how, context, arm, lr=rate, n_steps=_tuning_steps(context, arm), eval_every=0)
    started = time.perf_counter()
    trained = train_many(
        build_of(context, arm),
        _data(context),
        recipe,
        seeds,
        loss=arm.loss,
        after_step=arm.after_step,
        folder=run.scratch(arm.id, f"rate-{rate:g}"),
        progress=ticking(tick, len(seeds)),
    )
    losses = [_validation_loss(context, arm, one) for one in trained]
    run.save_tuned(arm.id, rate, losses, seconds=time.perf_counter() - started, seeds=seeds)
    run.drop_scratch(arm.id, f"rate-{rate:g}")


def _train(
    how: Training, context: Context, run: Run, arm: Arm, seeds: Sequence[int], tick: Tick
) -> None:
    rate = tuning_of(context, run, arm)["best"]
    recipe = _recipe(how, context, arm, lr=rate)
    started = time.perf_counter()
    trained = train_many(
        build_of(context, arm),
        _data(context),
        recipe,
        seeds,
        loss=arm.loss,
        after_step=arm.after_step,
        folder=run.scratch(arm.id, "train"),
        progress=ticking(tick, len(seeds)),
    )
    seconds = time.perf_counter() - started
    for seed, one in zip(seeds, trained, strict=True):
        tick(1.0, f"scoring seed {seed}")
        measures = _measures(how, context, arm, seed, one)
        run.save_cell(
            arm.id,
            seed,
            measures,
            learning_rate=rate,
            seconds=seconds / len(seeds),
            trained=one.history.how,
        )
    run.drop_scratch(arm.id, "train")


def _measures(how: Training, context: Context, arm: Arm, seed: int, trained: Trained) -> Measures:
    """Every metric and curve of one trained model."""
    data, history = _data(context), trained.history
    curves = {
        "training loss": tuple((step, loss) for step, loss in history.curve("loss")),
    }
    if history.failure is not None:
        guess = {"loss": math.log(data.vocab_size), "accuracy": 0.0, "exact_match": 0.0}
        return {**guess, "diverged": 1.0, **curves}
    model = trained.into(build_of(context, arm)(seed))
    with torch.no_grad():
        scored = evaluate(model, data.held_out("test")).overall
        found: dict[str, Any] = {
            "loss": scored.loss,
            "accuracy": scored.token_accuracy,
            "exact_match": scored.exact_match,
            "diverged": 0.0,
            "parameters": float(sum(p.numel() for p in model.parameters())),
            **_cache(context, model),
            **curves,
        }
        if how.score is not None:
            trial = Trial(
                model=model,
                arm=arm,
                seed=seed,
                data=data,
                setting=context.setting,
                history=history,
            )
            found.update(how.score(trial))
    return found


def _cache(context: Context, model: nn.Module) -> dict[str, float]:
    """Bytes of the real cache of one full sequence, where a metric asks for them."""
    if "cache_bytes" not in {m.id for m in context.setting.experiment.metrics}:
        return {}
    data = _data(context)
    cache = model.new_cache()
    model(torch.zeros(1, data.seq_len, dtype=torch.long), cache=cache)
    return {"cache_bytes": float(cache.nbytes)}


def _validation_loss(context: Context, arm: Arm, trained: Trained) -> float | None:
    """Mean validation loss; None where training diverged."""
    if trained.history.failure is not None:
        return None
    data = _data(context)
    model = trained.into(build_of(context, arm)(trained.seed))
    with torch.no_grad():
        loss = float(evaluate(model, data.held_out("validation")).overall.loss)
    return loss if math.isfinite(loss) else None


def _recipe(how: Training, context: Context, arm: Arm, **changes: Any) -> Recipe:
    budget = context.budget
    grid = context.setting.experiment.grid(arm, budget)
    fields: dict[str, Any] = {
        "n_steps": budget.n_steps,
        "batch_size": budget.batch_size,
        "lr": grid[0],
        # A tenth of the steps, as most small recipes have it; a technique may set its own.
        "warmup_steps": None,
        **how.recipe,
        **arm.recipe,
        **changes,
    }
    if fields["warmup_steps"] is None:
        fields["warmup_steps"] = fields["n_steps"] // 10
    fields["warmup_steps"] = min(fields["warmup_steps"], fields["n_steps"])
    return Recipe(**fields)


def _tuning_steps(context: Context, arm: Arm) -> int:
    """Steps of a tuning run: the same share of every arm's own."""
    budget = context.budget
    steps: int = arm.recipe.get("n_steps", budget.n_steps)
    if budget.n_tuning_steps is None:
        return steps
    return max(round(steps * budget.n_tuning_steps / budget.n_steps), 1)


def build_of(context: Context, arm: Arm) -> Callable[[int], nn.Module]:
    """From a seed to the fresh model of `arm`."""
    spec = context.spec(arm)
    if arm.build is None:
        return seeded(spec)
    return partial(arm.build, spec)


def probe(how: Training, context: Context, arm: Arm) -> float:
    """Seconds of one training step of one seed, measured; the first, slower one is left out."""
    data = _data(context)
    model = build_of(context, arm)(FIRST_TUNING_SEED).train()
    size = _recipe(how, context, arm).batch_size
    batch = data.batch(torch.Generator().manual_seed(0), size)
    taken = []
    for _ in range(1 + PROBE_STEPS):
        started = time.perf_counter()
        (arm.loss or next_token_loss)(model, batch).backward()
        taken.append(time.perf_counter() - started)
        model.zero_grad()
    return min(taken[1:])


def _data(context: Context) -> Data:
    data = context.setting.data
    assert data is not None
    return data


def ticking(tick: Tick, n_seeds: int) -> Progress:
    """What `train_many` of `n_seeds` is to call, so that `tick` hears how far it is.

    Seeds advance together or one after another: each counts for its share.
    """
    steps: dict[int, float] = {}

    def report(update: Update) -> None:
        steps.update(dict.fromkeys(update.seeds, update.step / update.n_steps))
        tick(sum(steps.values()) / n_seeds, f"loss {update.loss:.3f}")

    return report


def _seconds(step_s: float, n_steps: int, n_seeds: int) -> float:
    """What training is going to take, roughly."""
    together = 1 + COST_OF_ANOTHER_SEED * (n_seeds - 1)
    return JOB_OVERHEAD_S + STEP_OVERHEAD * step_s * n_steps * together


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"
