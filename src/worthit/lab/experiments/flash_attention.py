"""Flash attention against the plain one: the same numbers, the memory kept, and the time.

Both passes of causal attention, with a fused kernel, with our tiles in plain operations, and with
the matrix of scores. Memory is counted: what stands between the forward and the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from worthit.lab.claims import Metric, at_most, ratio_between, superior
from worthit.lab.context import Context, Setting
from worthit.lab.experiment import (
    Arm,
    Budget,
    Expectation,
    Experiment,
    Matched,
    Prediction,
    Timing,
)
from worthit.lab.metrics import SECONDS
from worthit.nn.attention.flash_attention import flash_attention, fused
from worthit.techniques.attention.flash_attention import DAO_2022

N_HEADS, HEAD_DIM = 4, 32
FP32_BYTES = 4
ERROR = Metric(id="error", name="largest error of outputs and gradients", margin=1e-5)
SAVED = Metric(
    id="saved_bytes",
    name="kept for the backward pass",
    unit="bytes",
    scale="ratio",
    margin=0.03,
    is_exact=True,
)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores written down, masked, put through the softmax, and multiplied: `(1, heads, n, d)`."""
    n = q.shape[2]
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    ahead = torch.ones(n, n, dtype=torch.bool).triu(1)
    return scores.masked_fill(ahead, -math.inf).softmax(dim=-1) @ v


def in_tiles(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The reading copy of the algorithm."""
    return flash_attention(q, k, v, is_causal=True)[0]


def by_kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The library's kernel."""
    return fused(q, k, v, is_causal=True)


ATTEND: dict[str, Attend] = {"plain": plain, "fused": by_kernel, "tiles": in_tiles}


def both_passes(attend: Attend, inputs: list[Tensor], d_out: Tensor) -> list[Tensor]:
    """The output, and the gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, d_out)]


def saved_bytes(attend: Attend, inputs: list[Tensor]) -> int:
    """Bytes that autograd keeps, each storage once."""
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    leaves = [x.detach().requires_grad_() for x in inputs]
    with saved_tensors_hooks(keep, lambda x: x):
        out = attend(*leaves)
    # The hooks hold for as long as the graph does.
    del out
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def largest_error(attend: Attend, inputs: list[Tensor], d_out: Tensor) -> float:
    """Of output and gradients against plain attention in fp64, over the largest value of each."""
    exact = both_passes(plain, [x.double() for x in inputs], d_out.double())
    found = both_passes(attend, inputs, d_out)
    pairs = zip(found, exact, strict=True)
    return max(float((f.double() - e).abs().max() / e.abs().max()) for f, e in pairs)


def prepare(context: Context, arm: Arm, seed: int) -> Callable[[], dict[str, float]]:
    """What is timed: both passes on the same random heads for every arm."""
    n = context.budget.sizes["tokens"]
    generator = torch.Generator().manual_seed(seed)
    shape = (1, N_HEADS, n, HEAD_DIM)
    *inputs, d_out = (torch.randn(shape, generator=generator) for _ in range(4))
    attend = ATTEND[arm.id]
    measured = {
        "error": largest_error(attend, inputs, d_out),
        "saved_bytes": float(saved_bytes(attend, inputs)),
    }

    def once() -> dict[str, float]:
        both_passes(attend, inputs, d_out)
        return measured

    return once


def predicted(setting: Setting) -> Iterator[Prediction]:
    """Bytes by hand: q, k and v; then probabilities and mask, or the output and its sums."""
    n = setting.budget.sizes["tokens"]
    one = N_HEADS * n * HEAD_DIM * FP32_BYTES
    matrix = N_HEADS * n * n * FP32_BYTES + n * n
    tiles = (4 * one + N_HEADS * n * FP32_BYTES) / (3 * one + matrix)
    for arm in setting.experiment.variants:
        yield Prediction(
            metric="saved_bytes", arm=arm.id, value=tiles, low=tiles, high=tiles, basis="counted"
        )


QUICK = Budget(n_seeds=5, n_rounds=9, sizes={"tokens": 1024}, seconds=3.0)
EXPERIMENT = Experiment(
    id="flash-attention",
    technique="flash-attention",
    question="Is attention in tiles exact, and what does it save in memory and time on this "
    "machine?",
    expectation=Expectation(
        statement="The same outputs and gradients up to rounding, memory linear in the length, and "
        "less time.",
        source=DAO_2022,
        refuted_if="an output or gradient is off by 1e-5 of the largest, a fifth of the memory is "
        "still kept, or the kernel takes as long",
        worth_it=True,
    ),
    how=Timing(prepare=prepare, n_warmup=1),
    matched=Matched(what=("nothing",), because="the same heads, and the same function of them"),
    arms=(
        Arm(id="plain", label="scores written down"),
        Arm(id="fused", label="fused kernel"),
        Arm(id="tiles", label="tiles, plain operations"),
    ),
    metrics=(SECONDS, SAVED, ERROR),
    claims=(
        at_most(ERROR, "fused", 1e-5),
        at_most(ERROR, "tiles", 1e-5),
        ratio_between(SAVED, "fused", 0.0, 0.2),
        ratio_between(SAVED, "tiles", 0.0, 0.2),
        superior(SECONDS, "fused"),
    ),
    budgets={
        "smoke": Budget(n_seeds=3, n_rounds=3, sizes={"tokens": 256}, seconds=0.3),
        "quick": QUICK,
        "full": Budget(n_seeds=10, n_rounds=15, sizes={"tokens": 4096}, seconds=60.0),
    },
    predicted=predicted,
    means={
        "confirmed": "Exact, lighter and faster wherever a kernel exists: always, and never by "
        "hand.",
    },
)
