"""Print the targets of a folder of benchmarks beside what was measured last.

    python benchmarks/standing.py inference
    python benchmarks/standing.py learning

The targets are in FOLDER/targets.toml, the measured in results/.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# What a sixth entry of a target names, in words.
KINDS = {"speedup_over": "", "less_memory_than": ", memory", "whole_speedup_over": ", start to end"}


def rows(targets: list[list[Any]], records: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A table for people and for README.md."""
    yield "| case | side | beside | target | measured, p20 to p80 | |"
    yield "|---|---|---|---|---|---|"
    for name, case, side, base, target, *kind in targets:
        kind = kind[0] if kind else "speedup_over"
        cases = records.get(name, {}).get("cases", {})
        found = cases.get(case, {}).get(side, {}).get(kind, {}).get(base)
        start = f"| {case}{KINDS[kind]} | {side} | {base} | {target} |"
        if found is None:
            yield f"{start} not measured | |"
            continue
        verdict = "met" if found["median"] >= target else "**missed**"
        yield (
            f"{start} {found['median']:.2f}, {found['p20']:.2f} to {found['p80']:.2f} | {verdict} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    folders = sorted(path.parent.name for path in HERE.glob("*/targets.toml"))
    parser.add_argument("folder", choices=folders)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    wanted = tomllib.loads((HERE / options.folder / "targets.toml").read_text(encoding="utf-8"))
    prefix, targets = wanted.get("prefix", ""), wanted["targets"]
    paths = {name: options.results / f"{prefix}{name}.json" for name, *_ in targets}
    records = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in paths.items()
        if path.is_file()
    }
    print(*rows(targets, records), sep="\n")
    for name, record in records.items():
        about = record["about"]
        noise = ", NOISY" if about["is_noisy"] else ""
        print(f"{name}: {about['date']}, {about['threads']} threads, {about['commit'][:8]}{noise}")
        for case, sides in record["cases"].items():
            limits = record.get("limit_s", {})
            shares = [
                f"{side} {one.get('limit_s', limits.get(side)) / one['median_s']:.0%}"
                for side, one in sides.items()
                if "limit_s" in one or (side in limits and "prompt" not in case)
            ]
            if shares:
                print(f"  {case}, of the physical limit: {', '.join(shares)}")


if __name__ == "__main__":
    main()
