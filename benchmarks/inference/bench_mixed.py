"""Time sixteen requests of unlike lengths that arrive at once, on every engine.

    python benchmarks/inference/bench_mixed.py

Prompts of 32 to 256 tokens, answers of 16 to 128, eight at once: worthit's engine, llama.cpp's
server with eight slots, transformers' continuous batching and its `generate` on padded batches.
What counts are the tokens that were asked for, over the time until the last has come.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable
from typing import Any

from sides import Load, Side, Theirs, ids_of, interleaved, parser, run, summary

SIDES = (
    "transformers bf16",
    "llama.cpp q4_1",
    "worthit fp32",
    "worthit bf16",
    "worthit q4_1",
)
BASES = ["generate_batch bf16", "generate bf16", "llama.cpp q4_1"]


def load_of(n_requests: int, longest: int, most: int) -> Load:
    dice = random.Random(0)
    return [
        (ids_of(dice.randrange(32, longest + 1), seed=i), dice.randrange(min(16, most), most + 1))
        for i in range(n_requests)
    ]


def seconds_of(name: str, serve: Callable[[], tuple[list[list[int]], float]], load: Load) -> float:
    said, seconds = serve()
    got = [len(one) for one in said]
    assert got == [n for _, n in load], f"{name} said {got} tokens"
    return seconds


def measure(sides: list[Side], options: argparse.Namespace) -> dict[str, Any]:
    load = load_of(4, 40, 4) if options.quick else load_of(options.requests, 256, options.tokens)
    runs = {}
    for side in sides:
        if isinstance(side, Theirs):
            dtype = side.name.split()[1]
            runs[f"generate_batch {dtype}"] = lambda s=side: s.serve(load)
            runs[f"generate {dtype}"] = lambda s=side: s.serve_in_batches(load)
        else:
            runs[side.name] = lambda s=side: s.serve(load)
    times = interleaved(
        {name: lambda n=name, r=r: seconds_of(n, r, load) for name, r in runs.items()},
        options.rounds,
    )
    bases = {name: times[name] for name in BASES if name in times}
    results = {name: summary(values, bases) for name, values in times.items()}
    useful = sum(n for _, n in load)
    print(f"\n{len(load)} requests, {useful} tokens asked for, {options.threads} threads")
    print(f"{'':22}{'tokens/s':>10}" + "".join(f"{'x ' + b:>24}" for b in bases))
    for name, one in results.items():
        one["tokens_per_s"] = useful / one["median_s"]
        print(
            f"{name:22}{one['tokens_per_s']:>10.1f}"
            + "".join(f"{one['speedup_over'][b]['median']:>24.2f}" for b in bases),
            flush=True,
        )
    return {
        "n_requests": len(load),
        "useful_tokens": useful,
        "mean_prompt": statistics.mean(len(p) for p, _ in load),
        "cases": {"mixed": results},
    }


def main() -> int:
    options = parser(__doc__, rounds=3)
    options.add_argument("--tokens", type=int, default=128)
    options.add_argument("--requests", type=int, default=16)
    return run(options.parse_args(), "worthit.bench-inference-mixed/1", measure, sides=SIDES)


if __name__ == "__main__":
    sys.exit(main())
