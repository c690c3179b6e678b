"""What a step costs: matrix optimizers over AdamW, number formats over none, and their parts.

    python benchmarks/lab/bench_optim.py [--rounds N] [--threads N]

A decoder of six layers and 256 channels on batches of bytes. What is compared takes turns; ratios
are of medians, with the 20th and 80th percentile of the rounds' own ratios. Beside the measured
ratio of a whole step stand two predictions: in FLOPs, what the technique's record adds over what
`worthit.cost` counts for the step; and in time, on a processor of two cores. With one thread the
time is that thread's own. Writes the numbers under results/.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worthit.cost.evaluate import evaluate
from worthit.cost.params import count_params
from worthit.cost.train import TrainCost
from worthit.nn.decoder import Decoder, build
from worthit.spec.load import build_case
from worthit.spec.model import Attention, FeedForward, Layer, ModelSpec, Precision
from worthit.techniques import catalogue
from worthit.techniques.optimizer.muon import newton_schulz_flops
from worthit.train.optim import OPTIMIZERS, optimizer_for, orthogonalise
from worthit.train.precision import PRECISIONS, apply_precision, bitnet, fp8, mx, nvfp4
from worthit.train.precision.floats import E2M1, E2M3, E4M3

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parents[1] / "results"
BATCH, SEQ = 8, 128
# A whole interval of Shampoo's and SOAP's renewals, so that each round pays for one.
STEPS = 10
LAYER = Layer(
    mixers=(Attention(n_heads=4, n_kv_heads=4, head_dim=64, rotary_dim=64),),
    ffn=FeedForward(d_ff=768),
)
SPEC = ModelSpec(
    name="six layers of 256",
    d_model=256,
    vocab_size=256,
    layers=(LAYER,) * 6,
    context_len=SEQ,
    precision=Precision(weights="fp32", activations="fp32", embeddings="fp32"),
)


def clock() -> float:
    """Seconds: of this thread's own work where it does all, whoever else keeps the machine."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def summary(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return {
        "median": statistics.median(values),
        "p20": cuts[0],
        "p80": cuts[-1],
        "n": len(values),
    }


def rounds_of(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, in turns, in a new order each round; once before, to warm up."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in random.sample(list(runs.items()), len(runs)):
            times[name].append(run())
    return times


def against(times: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Each one's ratio to `base`, round by round."""
    return {
        name: summary([t / b for t, b in zip(found, times[base], strict=True)])
        for name, found in times.items()
    }


class Trainer:
    """One model with its optimizer; counts the seconds of passes and of updates apart."""

    def __init__(self, optimizer: str = "adamw", precision: str | None = None) -> None:
        torch.manual_seed(0)
        model: Decoder = build(SPEC)
        self.model = model if precision is None else apply_precision(model, precision)
        self.optimizer = optimizer_for(self.model, optimizer, lr=1e-3)
        self.ids = torch.randint(SPEC.vocab_size, (BATCH, SEQ + 1))
        self.update_s = 0.0

    def one(self) -> None:
        logits = self.model(self.ids[:, :-1]).flatten(0, 1)
        nn.functional.cross_entropy(logits, self.ids[:, 1:].flatten()).backward()
        start = clock()
        self.optimizer.step()
        self.update_s += clock() - start
        self.optimizer.zero_grad()

    def steps(self, n: int) -> float:
        """Seconds a step over `n` of them."""
        start = clock()
        for _ in range(n):
            self.one()
        return (clock() - start) / n


def optimizers(rounds: int) -> dict[str, Any]:
    """A whole step and the update alone, over AdamW's."""
    trainers = {name: Trainer(name) for name in OPTIMIZERS}
    updates: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}

    def timed(name: str) -> float:
        trainer = trainers[name]
        trainer.update_s = 0.0
        seconds = trainer.steps(STEPS)
        updates[name].append(trainer.update_s / STEPS)
        return seconds

    times = rounds_of({name: partial(timed, name) for name in trainers}, rounds)
    updates = {name: found[1:] for name, found in updates.items()}  # the first warmed up
    whole, alone = against(times, "adamw"), against(updates, "adamw")
    case = build_case(SPEC, on="cpu-2vcpu", seq=SEQ, batch_tokens=BATCH * SEQ, train_tokens=10**6)
    cost = evaluate(case)
    assert isinstance(cost, TrainCost)
    train_flops = cost.flops_per_token * BATCH * SEQ
    rows = []
    for name in OPTIMIZERS:
        added, seconds = 0.0, cost
        if name != "adamw":
            options = {} if name == "muon" else {"interval": STEPS}
            changed = catalogue()[name].apply(case, **options)
            added = changed.runtime.optimizer_flops_per_param * count_params(SPEC).total
            seconds = evaluate(changed)
        rows.append(
            {
                "optimizer": name,
                "step_s": statistics.median(times[name]),
                "step_ratio": whole[name],
                "predicted_flops_ratio": 1 + added / train_flops,
                "predicted_time_ratio": float((seconds.step_s / cost.step_s)[0, 0]),
                "update_s": statistics.median(updates[name]),
                "update_ratio": alone[name],
                "update_flops_per_s": added / statistics.median(updates[name]),
            }
        )
    return {"tokens": BATCH * SEQ, "steps_a_round": STEPS, "train_flops": train_flops, "rows": rows}


def precisions(rounds: int) -> list[dict[str, Any]]:
    """A whole step with simulated narrow products, over one without."""
    trainers = {"fp32": Trainer()} | {name: Trainer(precision=name) for name in PRECISIONS}
    runs = {name: partial(trainer.steps, 1) for name, trainer in trainers.items()}
    times = rounds_of(runs, rounds)
    ratios = against(times, "fp32")
    return [
        {"precision": name, "step_s": statistics.median(times[name]), "step_ratio": ratios[name]}
        for name in times
    ]


def timed(call: Callable[[], object]) -> float:
    start = clock()
    call()
    return clock() - start


def orthogonalisation(rounds: int) -> list[dict[str, Any]]:
    """Newton-Schulz on stacks of matrices, in FLOP/s, beside a plain product of the same type."""
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        for n, shape in ((24, (256, 256)), (6, (768, 256)), (2, (1024, 1024))):
            x = torch.randn(n, *shape)
            y = x.to(dtype)
            times = rounds_of(
                {
                    "newton-schulz": partial(timed, partial(orthogonalise, x, dtype=dtype)),
                    "product": partial(timed, partial(torch.bmm, y, y.mT)),
                },
                rounds,
            )
            flops = {
                "newton-schulz": newton_schulz_flops(*shape) * x.numel(),
                "product": 2.0 * n * shape[0] ** 2 * shape[1],
            }
            each = {k: flops[k] / statistics.median(found) for k, found in times.items()}
            rows.append(
                {"shape": [n, *shape], "dtype": str(dtype).split(".")[1], "flops_per_s": each}
            )
    return rows


def quantizers(rounds: int) -> list[dict[str, Any]]:
    """Values a second through each format."""
    x = torch.randn(1024, 256)
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "fp8, tensor": fp8.quantize,
        "fp8, rows": partial(fp8.quantize, scaling="row"),
        "mxfp8": partial(mx.quantize, format=E4M3),
        "mxfp6": partial(mx.quantize, format=E2M3),
        "mxfp4": partial(mx.quantize, format=E2M1),
        "mxfp4, by chance": partial(mx.quantize, format=E2M1, is_stochastic=True),
        "nvfp4": nvfp4.quantize,
        "ternary": bitnet.quantize_weights,
        "int8 a token": bitnet.quantize_activations,
        "torch's cast to e4m3 and back": lambda t: t.to(torch.float8_e4m3fn).float(),
    }
    runs = {name: partial(timed, partial(call, x)) for name, call in calls.items()}
    times = rounds_of(runs, rounds)
    return [
        {"quantizer": name, "elements_per_s": x.numel() / statistics.median(found)}
        for name, found in times.items()
    ]


def about() -> dict[str, object]:
    """What these numbers were measured on."""

    def git(*words: str) -> str:
        said = subprocess.run(
            ["git", *words], capture_output=True, text=True, cwd=ROOT, check=False
        )
        return said.stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD"),
        "is_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": "thread" if torch.get_num_threads() == 1 else "wall",
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def span(found: dict[str, float]) -> str:
    return f"{found['median']:.3f}x [{found['p20']:.3f}, {found['p80']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    random.seed(0)
    record = {
        "about": about(),
        "model": {"params": count_params(SPEC).total, "what": SPEC.name},
        "optimizers": optimizers(arguments.rounds),
        "precisions": precisions(arguments.rounds),
        "newton_schulz": orthogonalisation(arguments.rounds),
        "quantizers": quantizers(10 * arguments.rounds),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "optim.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(f"{'step over AdamW':<18}{'measured':<28}{'FLOPs':<9}{'predicted':<11}update alone")
    for row in record["optimizers"]["rows"]:
        predicted = (row["predicted_flops_ratio"], row["predicted_time_ratio"])
        print(
            f"{row['optimizer']:<18}{span(row['step_ratio']):<28}{predicted[0]:.3f}x   "
            f"{predicted[1]:.3f}x     {row['update_s'] * 1e3:.1f} ms, "
            f"{row['update_ratio']['median']:.0f} times AdamW's"
        )
    for row in record["precisions"]:
        print(f"{row['precision']:<18}{span(row['step_ratio'])}")
    for row in record["newton_schulz"]:
        each = row["flops_per_s"]
        print(
            f"newton-schulz {row['shape']} {row['dtype']}: {each['newton-schulz'] / 1e9:.1f} "
            f"GFLOP/s; a product {each['product'] / 1e9:.1f}"
        )
    for row in record["quantizers"]:
        print(f"{row['quantizer']:<32}{row['elements_per_s'] / 1e6:8.0f} million a second")


if __name__ == "__main__":
    main()
