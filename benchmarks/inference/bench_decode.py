"""Time decoding and prompts of SmolLM2-135M-Instruct beside transformers and llama.cpp.

    python benchmarks/inference/bench_decode.py

Cases: one sequence behind 32 and 512 tokens, eight sequences at once, a prompt of 512. A time is
that of a step in the middle; beside it stands the least that it can take, the bytes of all weights
over the bandwidth that reading memory reaches here (a prompt's limit is arithmetic, not bytes).
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from sides import N_AT_ONCE, Side, bandwidth, ids_of, interleaved, parser, run, summary, table

SIDES = (
    "transformers fp32",
    "transformers bf16",
    "llama.cpp q4_1",
    "worthit fp32",
    "worthit bf16",
    "worthit int8",
    "worthit q4_1",
)
BASES = ["transformers fp32", "transformers bf16", "llama.cpp q4_1"]


def measure(sides: list[Side], options: argparse.Namespace) -> dict[str, Any]:
    n, long = (4, 64) if options.quick else (options.tokens, 512)
    one_of = {length: [ids_of(length, seed=length)] for length in (32, long)}
    eight = [ids_of(32, seed=i) for i in range(N_AT_ONCE)]
    cases = {
        "one, behind 32": lambda s: s.decode(one_of[32], n)[1],
        f"one, behind {long}": lambda s: s.decode(one_of[long], n)[1],
        "eight, behind 32": lambda s: s.decode(eight, n)[1],
        f"prompt of {long}": lambda s: s.prefill(one_of[long][0]),
    }
    rate = bandwidth()
    limits = {side.name: side.weight_bytes / rate for side in sides}
    results: dict[str, Any] = {}
    for case, way in cases.items():
        times = interleaved({s.name: lambda s=s, w=way: w(s) for s in sides}, options.rounds)
        bases = {name: times[name] for name in BASES if name in times}
        results[case] = {name: summary(values, bases) for name, values in times.items()}
        print(f"\n{case}, {options.threads} threads")
        print(*table(results[case], BASES, limits), sep="\n", flush=True)
    return {"tokens": n, "cases": results, "limit_s": limits}


def main() -> int:
    options = parser(__doc__, rounds=7)
    options.add_argument("--tokens", type=int, default=32)
    return run(options.parse_args(), "worthit.bench-inference-decode/1", measure, sides=SIDES)


if __name__ == "__main__":
    sys.exit(main())
