"""Time to the first token, cold and with four fifths of the prompt known.

    python benchmarks/inference/bench_prefix.py

worthit's prefix cache and llama.cpp's, each against itself. The bound is what is left to compute:
where a fifth of the tokens remains, a cache that costs nothing saves a factor of five, less where
attention or what a pass costs by itself counts, more only where a pass over few tokens is faster
by the token.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

from sides import LlamaCpp, Ours, Side, ids_of, parser, run, summary

from worthit.decode.engine import Engine, Request

SIDES = ("transformers bf16", "llama.cpp q4_1", "worthit fp32", "worthit bf16", "worthit q4_1")


def first_token(engine: Engine, ids: list[int]) -> float:
    started = time.perf_counter()
    engine.generate([Request(prompt=ids, max_tokens=1, stop_ids=())])
    return time.perf_counter() - started


def ttft(side: Side, known: list[int], prompts: list[list[int]]) -> tuple[float, float]:
    """Seconds to the first token of a prompt that nobody has seen, and of one whose `known` was.

    Args:
        prompts: two that begin with `known` and end otherwise.
    """
    if isinstance(side, Ours):
        engine = side.engine(has_prefixes=True)
        cold = first_token(engine, prompts[0])
        return cold, first_token(engine, prompts[1])
    assert isinstance(side, LlamaCpp)
    cold = side.ask(prompts[0], 1, has_prefixes=True)["timings"]
    warm = side.ask(prompts[1], 1, has_prefixes=True)["timings"]
    assert warm["cache_n"] >= len(known) - 1, warm
    return cold["prompt_ms"] / 1e3, warm["prompt_ms"] / 1e3


def measure(sides: list[Side], options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    print(f"\n{'':20}{'prompt':>8}{'known':>7}{'cold ms':>10}{'warm ms':>10}{'gain':>8}")
    for n_prompt in [80] if options.quick else options.prompts:
        n_known = n_prompt * 4 // 5
        case: dict[str, Any] = {}
        times: dict[str, list[tuple[float, float]]] = {}
        for i in range(options.rounds + 1):
            # Another beginning each round: what an earlier one left behind is of no use.
            known = ids_of(n_known, seed=1000 + i)
            ends = [ids_of(n_prompt - n_known + 1, seed=s + 2 * i)[1:] for s in (1, 2)]
            for side in sides:
                if isinstance(side, Ours | LlamaCpp):
                    found = ttft(side, known, [known + end for end in ends])
                    if i:
                        times.setdefault(side.name, []).append(found)
        for name, pairs in times.items():
            cold, warm = ([pair[j] for pair in pairs] for j in (0, 1))
            case[name] = summary(warm, {"cold": cold})
            gain = case[name]["speedup_over"]["cold"]["median"]
            print(
                f"{name:20}{n_prompt:>8}{n_known:>7}{1e3 * statistics.median(cold):>10.1f}"
                f"{1e3 * statistics.median(warm):>10.1f}{gain:>7.2f}x",
                flush=True,
            )
        results[f"prompt of {n_prompt}, {n_known} known"] = case
    return {"cases": results}


def main() -> int:
    options = parser(__doc__, rounds=7)
    options.add_argument("--prompts", type=int, nargs="+", default=[320, 640, 1280])
    return run(options.parse_args(), "worthit.bench-inference-prefix/1", measure, sides=SIDES[1:])


if __name__ == "__main__":
    sys.exit(main())
