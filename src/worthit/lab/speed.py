"""How fast the trained arms of an experiment are: a step of training, a token of decoding.

All arms of a seed take turns on the clock (see `worthit.lab.jobs`). Their weights are fresh: what
is timed does not depend on them, but for routing, which a fresh router spreads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from worthit.decode.generate import tokens_of
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Timing
from worthit.lab.jobs import Job, Tick, take_turns
from worthit.lab.runs import Run
from worthit.train import Batch, next_token_loss

if TYPE_CHECKING:
    from worthit.lab.training import Builder

N_ROUNDS = 9
N_WARMUP = 2
JOB_OVERHEAD_S = 0.3
# Raised when what is timed changes: older times are then taken anew.
VERSION = 2


def speed_jobs(
    context: Context, run: Run, seeds: Sequence[int], build: Builder, step_s: Mapping[str, float]
) -> list[Job]:
    """One job a seed and speed that the experiment's metrics name; all arms in it."""
    arms = context.setting.experiment.arms
    wanted = [m.id for m in context.setting.experiment.metrics if m.id in CALLS]
    n_turns = N_ROUNDS + N_WARMUP

    def job(metric: str, seed: int) -> Job:
        def do(tick: Tick) -> None:
            how = Timing(
                prepare=lambda context, arm, seed: CALLS[metric](context, arm, seed, build),
                per="n",
                n_warmup=N_WARMUP,
            )
            for arm, found in take_turns(how, context.ticking(tick), seed, N_ROUNDS).items():
                run.save_part(
                    arm,
                    seed,
                    metric,
                    {metric: found.values["seconds"]},
                    spread=list(found.spread),
                    n=found.n,
                    version=VERSION,
                )

        seconds = JOB_OVERHEAD_S + n_turns * sum(step_s.values())
        return Job(f"{metric}, seed {seed}", seconds, 0, do)

    return [
        job(metric, seed)
        for metric in wanted
        for seed in seeds
        if any((run.part(arm.id, seed, metric) or {}).get("version") != VERSION for arm in arms)
    ]


def training_step(
    context: Context, arm: Arm, seed: int, build: Builder
) -> Callable[[], dict[str, float]]:
    """A forward and a backward pass over one batch; the optimizer is the same for all.

    Every token has a target: where few had one, an arm could leave out what another cannot.
    """
    data, loss = context.setting.data, arm.loss or next_token_loss
    assert data is not None
    model: nn.Module = build(context, arm)(seed).train()
    drawn = data.batch(torch.Generator().manual_seed(seed), context.budget.batch_size)
    batch = Batch(drawn.input_ids, drawn.input_ids.roll(-1, dims=1), drawn.groups)

    def step() -> dict[str, float]:
        loss(model, batch).backward()
        model.zero_grad()
        return {"n": 1.0}

    return step


def decoded_token(
    context: Context, arm: Arm, seed: int, build: Builder
) -> Callable[[], dict[str, float]]:
    """A prompt of half the context, then the other half token by token, one sequence alone."""
    data = context.setting.data
    assert data is not None
    model = build(context, arm)(seed).eval()
    half = data.seq_len // 2
    ids = torch.randint(data.vocab_size, (half,), generator=torch.Generator().manual_seed(seed))

    def decode() -> dict[str, float]:
        return {"n": float(sum(1 for _ in tokens_of(model, [ids.tolist()], max_tokens=half)))}

    return decode


CALLS = {"step_s": training_step, "token_s": decoded_token}
