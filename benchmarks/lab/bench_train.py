"""Training throughput: against transformers in a plain loop, and five seeds against one.

    python benchmarks/lab/bench_train.py [--rounds N] [--threads N] [--only PART] [--json FILE]

1. The grammar tutor and a model of ten million parameters over bytes, trained by `worthit.train`
   and by a loop written out over the same model in `transformers`, from the same weights on the
   same batches. They take turns, a few updates each; a ratio is of the turns' medians, and the loss
   of both after the last update stands beside it.
2. Five seeds of the grammar tutor by `train_many` against one by `train`, both with all threads, by
   batch size; beside it the share of the machine's products that the one seed reaches, which says
   what there is left to gain.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Threads that spin while they wait make a busy machine slower by orders of magnitude.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import transformers
from torch import nn
from torch.nn.functional import cross_entropy

from worthit.lab.tasks import grammar_tutor, text
from worthit.nn.load import save_model
from worthit.spec import load_preset
from worthit.spec.model import Attention, FeedForward, Layer, ModelSpec, Norm, Precision
from worthit.train import IGNORE, Data, Recipe, Update, seeded, train, train_many
from worthit.train.loop import seed_for
from worthit.train.schedule import lr_ratio

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parents[1] / "results"
SEEDS = range(5)
BATCH_SIZES = (4, 8, 16, 32, 64)
# About as long as one round of five seeds takes at the largest batch size.
ROUND_S = 4.0

BYTES_LAYER = Layer(
    mixers=(Attention(n_heads=6, n_kv_heads=6, head_dim=64, rotary_dim=64),),
    ffn=FeedForward(d_ff=1024),
    norm=Norm(eps=1e-5),
)
BYTES = ModelSpec(
    name="ten million parameters over bytes",
    d_model=384,
    vocab_size=256,
    context_len=256,
    layers=(BYTES_LAYER,) * 6,
    norm=Norm(eps=1e-5),
    precision=Precision(weights="fp32", embeddings="fp32", activations="fp32"),
)


class Turns:
    """Runs a training in turns: `turn(n)` lets it make `n` more updates and times them."""

    def __init__(self, updates: Any) -> None:
        self._updates = updates

    def turn(self, n: int) -> float:
        """Seconds an update, over `n` of them."""
        start = time.perf_counter()
        for _ in range(n):
            self.loss = next(self._updates)
        return (time.perf_counter() - start) / n


def plain(model: Any, data: Data, recipe: Recipe) -> Any:
    """A loop as it is usually written, over a model of transformers; yields the losses."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=recipe.betas, weight_decay=0.0
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_ratio(recipe, step))
    generator = torch.Generator().manual_seed(seed_for("data", 0))
    model.train()
    for _ in range(recipe.n_steps):
        batch = data.batch(generator, recipe.batch_size)
        logits = model(batch.input_ids, use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        yield loss.item()


def ours(model: nn.Module, data: Data, recipe: Recipe) -> Any:
    """`train`, its updates handed out one by one from a thread that waits in between."""
    import queue
    import threading

    go: queue.Queue[bool] = queue.Queue()
    done: queue.Queue[float] = queue.Queue()

    def progress(update: Update) -> None:
        done.put(update.loss)
        go.get()

    def run() -> None:
        torch.set_num_threads(THREADS)
        go.get()
        train(model, data, recipe, seed=0, progress=progress)

    threading.Thread(target=run, daemon=True).start()
    for _ in range(recipe.n_steps):
        go.put(True)
        yield done.get()


def against_transformers(
    name: str, spec: ModelSpec, data: Data, batch_size: int, rounds: int, updates: int
) -> dict[str, Any]:
    """Seconds an update of each, in turns."""
    n_steps = rounds * updates
    fields: dict[str, Any] = {
        "n_steps": n_steps,
        "batch_size": batch_size,
        "warmup_steps": n_steps // 10,
        "weight_decay": 0.0,
        "eval_every": 0,
    }
    start = seeded(spec)(0)
    with tempfile.TemporaryDirectory() as folder:
        save_model(start, folder)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for part in theirs.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    recipe = Recipe(**fields)
    runs = {
        "transformers": Turns(plain(theirs, data, recipe)),
        "worthit": Turns(ours(seeded(spec)(0), data, recipe)),
        "worthit, bf16": Turns(ours(seeded(spec)(0), data, Recipe(**fields, precision="bf16"))),
    }
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            times[key].append(run.turn(updates))
    base = times["transformers"][1:]
    rows = {}
    for key, found in times.items():
        seconds = statistics.median(found[1:])
        ratios = [b / f for b, f in zip(base, found[1:], strict=True)]
        rows[key] = {
            "update_s": seconds,
            "tokens_per_s": batch_size * data.seq_len / seconds,
            "speed": statistics.median(base) / seconds,
            "p20": quantile(ratios, 1),
            "p80": quantile(ratios, 4),
            "last_loss": runs[key].loss,
        }
    return {"name": name, "batch_size": batch_size, "updates": n_steps, "rows": rows}


def quantile(values: list[float], fifth: int) -> float:
    return statistics.quantiles(values, n=5, method="inclusive")[fifth - 1]


def many_seeds(rounds: int) -> list[dict[str, Any]]:
    """Wall time of five runs over that of one, by batch size and precision."""
    data, build = grammar_tutor.build(), seeded(load_preset("grammar-tutor"))
    rows = []
    for batch_size in BATCH_SIZES:
        n_steps = max(int(ROUND_S / timed_step(build, data, batch_size) / 3), 10)
        recipe = Recipe(n_steps=n_steps, batch_size=batch_size, eval_every=0)
        how = ""

        def five(recipe: Recipe = recipe) -> None:
            nonlocal how
            how = train_many(build, data, recipe, SEEDS)[0].history.how

        def one(recipe: Recipe = recipe) -> None:
            train(build(0), data, recipe, seed=0)

        five()
        times: dict[str, list[float]] = {"five": [], "one": []}
        for _ in range(rounds):
            for key, call in (("one", one), ("five", five)):
                start = time.perf_counter()
                call()
                times[key].append(time.perf_counter() - start)
        ratios = [f / o for f, o in zip(times["five"], times["one"], strict=True)]
        median = {key: statistics.median(found) for key, found in times.items()}
        flops = counted_flops(build, data, batch_size)
        reached = flops * n_steps / median["one"]
        rows.append(
            {
                "batch_size": batch_size,
                "updates": n_steps,
                "one_s": median["one"],
                "five_s": median["five"],
                "ratio": median["five"] / median["one"],
                "p20": quantile(ratios, 1),
                "p80": quantile(ratios, 4),
                "how": how,
                "flops_per_update": flops,
                "one_share_of_peak": reached / PEAK,
                "least_ratio": len(SEEDS) * reached / PEAK,
            }
        )
        print(seeds_row(rows[-1]), flush=True)
    return rows


def timed_step(build: Callable[[int], nn.Module], data: Data, batch_size: int) -> float:
    """Seconds an update of one run."""
    start = time.perf_counter()
    train(build(0), data, Recipe(n_steps=20, batch_size=batch_size, eval_every=0), seed=0)
    return (time.perf_counter() - start) / 20


def counted_flops(build: Callable[[int], nn.Module], data: Data, batch_size: int) -> float:
    """Of the products in one update, both ways, by torch's counter."""
    from torch.utils.flop_counter import FlopCounterMode

    from worthit.train import next_token_loss

    model = build(0)
    batch = data.batch(torch.Generator().manual_seed(0), batch_size)
    with FlopCounterMode(display=False) as counter:
        next_token_loss(model, batch).backward()
    return float(counter.get_total_flops())


def peak_flops() -> float:
    """The best rate of one large product in fp32, with all threads."""
    a, b = torch.randn(4096, 1024), torch.randn(1024, 1024)
    best = 0.0
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * 4096 * 1024 * 1024 / (time.perf_counter() - start))
    return best


def seeds_row(row: dict[str, Any]) -> str:
    return (
        f"  batch {row['batch_size']:3d}: one {row['one_s'] / row['updates'] * 1e3:6.2f} ms, five "
        f"{row['five_s'] / row['updates'] * 1e3:6.2f} ms an update; ratio {row['ratio']:.2f} "
        f"[{row['p20']:.2f}, {row['p80']:.2f}], at the peak it would be {row['least_ratio']:.2f} "
        f"({row['how']})"
    )


def about(threads: int) -> dict[str, object]:
    """Where and of what these numbers are."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": git("rev-parse", "HEAD"),
        "is_dirty": bool(git("status", "--porcelain", "--untracked-files=no", "src")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "peak_flops": PEAK,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=["transformers", "seeds"])
    parser.add_argument("--json", type=Path, default=RESULTS / "train.json")
    arguments = parser.parse_args()
    global THREADS, PEAK
    THREADS = arguments.threads
    torch.set_num_threads(THREADS)
    transformers.utils.logging.set_verbosity_error()
    PEAK = peak_flops()
    record: dict[str, Any] = {"about": about(THREADS)}
    if arguments.only != "seeds":
        tutor, data = load_preset("grammar-tutor"), grammar_tutor.build()
        corpus = text.build(seq_len=BYTES.context_len, max_megabytes=4)
        record["against_transformers"] = []
        for name, spec, task, size, updates in (
            ("grammar tutor", tutor, data, 32, 20),
            (BYTES.name, BYTES, corpus, 8, 2),
        ):
            found = against_transformers(name, spec, task, size, arguments.rounds + 1, updates)
            record["against_transformers"].append(found)
            print(f"{name}, batches of {size}, after {found['updates']} updates")
            for key, row in found["rows"].items():
                print(
                    f"  {key:14} {row['tokens_per_s']:9,.0f} tokens/s, {row['speed']:.2f}x "
                    f"[{row['p20']:.2f}, {row['p80']:.2f}], loss {row['last_loss']:.4f}",
                    flush=True,
                )
    if arguments.only != "transformers":
        print("five seeds of the grammar tutor against one")
        record["five_seeds"] = many_seeds(arguments.rounds)
    arguments.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


THREADS, PEAK = 1, 0.0

if __name__ == "__main__":
    main()
