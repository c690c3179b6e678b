"""How fast a verdict is: the whole catalogue in process, and one command from a cold start.

    python benchmarks/bench_judge.py [--rounds N]

Medians with the 20th and 80th percentile, of rounds in which what is compared alternates. Writes
the numbers beside this file, under results/, and exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from worthit.judge.judge import judge
from worthit.spec.load import build_case, load_preset
from worthit.techniques import catalogue

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
# The whole catalogue with flip points, for DeepSeek-V3 on eight H200, seconds.
TARGET_JUDGE_S = 0.150
# `worthit judge grammar-tutor` from nothing, over `python -c pass`.
TARGET_COLD = 12.0


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def summary(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return {
        "median_s": statistics.median(values),
        "p20_s": cuts[0],
        "p80_s": cuts[-1],
        "n": len(values),
    }


def in_process(rounds: int) -> dict[str, object]:
    """Judge everything for one large case, again and again."""
    case = build_case(
        load_preset("deepseek-v3"), on="h200:8", prompt=100_000, output=1000, concurrency=16
    )
    judge(case)  # the catalogue is read once a process
    return {
        "what": "whole catalogue with flips, deepseek-v3 on h200:8, prompt 100000",
        "techniques": len(catalogue()),
        "target_s": TARGET_JUDGE_S,
        **summary([timed(lambda: judge(case)) for _ in range(rounds)]),
    }


def cold_start(rounds: int) -> dict[str, object]:
    """One command beside an empty interpreter, alternating."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src")])}
    environment.pop("PYTHONPROFILEIMPORTTIME", None)
    # Compiled once, as an installation is; kept out of the source tree.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp(prefix="worthit-bench-")
    start = "import sys; from worthit.cli.main import main; sys.argv[0] = 'worthit'; main()"
    commands = {
        "pass": [sys.executable, "-c", "pass"],
        "judge": [sys.executable, "-c", start, "judge", "grammar-tutor"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}

    def run(name: str) -> None:
        quiet = subprocess.DEVNULL
        subprocess.run(
            commands[name], env=environment, stdout=quiet, stderr=quiet, check=True, cwd=ROOT
        )

    for name in commands:
        run(name)  # compiled files and the disk's cache are there from now on
    for _ in range(rounds):
        for name, values in times.items():
            values.append(timed(lambda name=name: run(name)))  # type: ignore[misc]  # bound now
    shutil.rmtree(environment["PYTHONPYCACHEPREFIX"])
    found = {name: summary(values) for name, values in times.items()}
    ratio = found["judge"]["median_s"] / found["pass"]["median_s"]
    return {
        "what": "worthit judge grammar-tutor over python -c pass, cold",
        "ratio": ratio,
        "target_ratio": TARGET_COLD,
        **found,
    }


def about() -> dict[str, object]:
    """What these numbers were measured on."""
    said = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    return {
        "commit": commit.stdout.strip(),
        "is_dirty": bool(said.stdout.strip()),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    judged, cold = in_process(rounds), cold_start(rounds)
    RESULTS.mkdir(exist_ok=True)
    record = {"about": about(), "judge": judged, "cold": cold}
    (RESULTS / "bench_judge.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")

    ms = 1e3
    assert isinstance(cold["judge"], dict)
    assert isinstance(cold["pass"], dict)
    rows = [
        ("judge deepseek-v3, all techniques", judged, f"<= {TARGET_JUDGE_S * ms:.0f} ms"),
        ("worthit judge grammar-tutor, cold", cold["judge"], ""),
        ("python -c pass", cold["pass"], ""),
    ]
    print(f"{'':<36}{'median':>9}{'p20':>9}{'p80':>9}   target")
    for name, found, target in rows:
        cells = (float(found[key]) * ms for key in ("median_s", "p20_s", "p80_s"))
        print(f"{name:<36}" + "".join(f"{cell:>6.1f} ms" for cell in cells) + f"   {target}")
    print(f"{'cold over pass':<36}{cold['ratio']:>8.1f}x{'':>18}   <= {TARGET_COLD:.0f}x")
    print(f"{judged['techniques']} techniques, {rounds} rounds")
    is_met = float(str(judged["median_s"])) <= TARGET_JUDGE_S
    return 0 if is_met and float(str(cold["ratio"])) <= TARGET_COLD else 1


if __name__ == "__main__":
    sys.exit(main())
