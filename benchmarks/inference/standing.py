"""Print the targets of README.md beside what results/inference-*.json measured.

python benchmarks/inference/standing.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"
# File, case, side, base, target.
TARGETS = (
    ("decode", "one, behind 32", "worthit q4_1", "transformers bf16", 4.5),
    ("decode", "one, behind 32", "worthit q4_1", "llama.cpp q4_1", 1.0),
    ("decode", "one, behind 512", "worthit q4_1", "llama.cpp q4_1", 1.0),
    ("decode", "one, behind 32", "worthit bf16", "transformers bf16", 1.8),
    ("decode", "eight, behind 32", "worthit q4_1", "llama.cpp q4_1", 2.0),
    ("decode", "prompt of 512", "worthit q4_1", "llama.cpp q4_1", 3.5),
    ("decode", "prompt of 512", "worthit q4_1", "transformers bf16", 1.0),
    ("decode", "prompt of 512", "worthit bf16", "transformers bf16", 1.0),
    ("mixed", "mixed", "worthit q4_1", "llama.cpp q4_1", 2.6),
    ("mixed", "mixed", "worthit q4_1", "generate_batch bf16", 3.0),
    ("prefix", "prompt of 320, 256 known", "worthit q4_1", "cold", 5.0),
    ("prefix", "prompt of 640, 512 known", "worthit q4_1", "cold", 5.0),
    ("prefix", "prompt of 1280, 1024 known", "worthit q4_1", "cold", 5.0),
    ("lookup", "copy", "worthit fp32", "greedy", 1.8),
    ("lookup", "copy", "worthit bf16", "greedy", 1.8),
    ("lookup", "summarise", "worthit fp32", "greedy", 1.8),
    ("lookup", "summarise", "worthit bf16", "greedy", 1.8),
    ("lookup", "chat", "worthit fp32", "greedy", 0.97),
    ("lookup", "chat", "worthit bf16", "greedy", 0.97),
)


def rows(records: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A table for people and for README.md."""
    yield "| case | side | beside | target | measured, p20 to p80 | |"
    yield "|---|---|---|---|---|---|"
    for name, case, side, base, target in TARGETS:
        cases = records.get(name, {}).get("cases", {})
        found = cases.get(case, {}).get(side, {}).get("speedup_over", {}).get(base)
        if found is None:
            yield f"| {case} | {side} | {base} | {target} | not measured | |"
            continue
        verdict = "met" if found["median"] >= target else "**missed**"
        yield (
            f"| {case} | {side} | {base} | {target} | {found['median']:.2f}, "
            f"{found['p20']:.2f} to {found['p80']:.2f} | {verdict} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    folder = parser.parse_args().results
    records = {
        path.stem.removeprefix("inference-"): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("inference-*.json"))
    }
    print(*rows(records), sep="\n")
    for name, record in records.items():
        about = record["about"]
        noise = ", NOISY" if about["is_noisy"] else ""
        print(f"{name}: {about['date']}, {about['threads']} threads, {about['commit'][:8]}{noise}")
        for case, sides in record["cases"].items():
            limits = record.get("limit_s", {})
            shares = [
                f"{side} {limits[side] / one['median_s']:.0%}"
                for side, one in sides.items()
                if side in limits and "prompt" not in case
            ]
            if shares:
                print(f"  {case}, of the bandwidth's limit: {', '.join(shares)}")


if __name__ == "__main__":
    main()
