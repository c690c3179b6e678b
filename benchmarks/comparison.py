"""How two sides are compared: in turns, in one run, by medians of ratios within rounds.

A busy machine slows all sides of a round alike, so ratios within rounds say more than times. What
others took of the machine meanwhile is written beside them (`noise.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from noise import Others, noted

RESULTS = Path(__file__).resolve().parent / "results"


def timed(run: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def interleaved(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each way takes, round by round, after one round that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, way in ways.items():
            value = way()
            if i:
                found[name].append(value)
    return found


def summary(values: list[float], bases: dict[str, list[float]]) -> dict[str, Any]:
    """Median and spread of times, and by how much the bases are slower, round by round."""
    return {
        "median_s": statistics.median(values),
        **dict(zip(("p20_s", "p80_s"), ends(values), strict=True)),
        "n": len(values),
        "speedup_over": {name: ratios(times, values) for name, times in bases.items()},
    }


def ratios(above: list[float], below: list[float]) -> dict[str, float]:
    """Median and spread of ratios within rounds."""
    found = [a / b for a, b in zip(above, below, strict=True)]
    return {
        "median": statistics.median(found),
        **dict(zip(("p20", "p80"), ends(found), strict=True)),
    }


def ends(values: list[float]) -> tuple[float, float]:
    """The 20th and the 80th percentile."""
    if len(values) < 2:
        return values[0], values[0]
    q = statistics.quantiles(values, n=5, method="inclusive")
    return q[0], q[3]


def about(options: argparse.Namespace, *packages: str) -> dict[str, Any]:
    """What a record says of the run: when, where and from what."""
    git = ["git", "-C", str(Path(__file__).parent)]

    def said(*words: str) -> str:
        return subprocess.run([*git, *words], capture_output=True, text=True, check=False).stdout

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": said("rev-parse", "HEAD").strip(),
        "is_dirty": bool(said("status", "--porcelain", "--untracked-files=no").strip()),
        "cpu": _cpu(),
        "threads": options.threads,
        "rounds": options.rounds,
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")


def parser(doc: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks of a folder understand."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out-dir", type=Path, default=RESULTS)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    made.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs at all")
    return made


def write(record: dict[str, Any], options: argparse.Namespace, name: str, others: Others) -> None:
    """Write `NAME.json`, and say where; a run of `--quick` is no result and is not written."""
    record["about"] |= others.record()
    print(noted(record["about"]), end="")
    if options.quick and options.out_dir == RESULTS:
        print("--quick: nothing is written", file=sys.stderr)
        return
    options.out_dir.mkdir(parents=True, exist_ok=True)
    out = options.out_dir / f"{name}.json"
    out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"written: {out}")
