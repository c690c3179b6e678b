"""Draw how each mixer's time grows with the length, from what `bench_mixers.py` measured.

python benchmarks/models/plot_mixers.py benchmarks/results/mixers.json docs/mixers.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt  # the backend first

MODE = "forward"


def main() -> None:
    source, target = (Path(argument) for argument in sys.argv[1:3])
    report = json.loads(source.read_text(encoding="utf-8"))
    # The same drawing from the same numbers.
    mpl.rcParams |= {"svg.hashsalt": "worthit", "svg.fonttype": "none"}
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    found: dict[str, list[tuple[int, float]]] = {}
    for record in report["results"]:
        # The first results had ours beside theirs, without `sides`.
        ours = record.get("sides", record).get("ours")
        if record["mode"] == MODE and ours is not None:
            time = ours["median_s"] * 1e3
            found.setdefault(record["mixer"], []).append((record["length"], time))
    for name, points in found.items():
        lengths, times = zip(*sorted(points), strict=True)
        axes.loglog(lengths, times, marker="o", markersize=3, label=name, base=2)
    every = sorted({length for points in found.values() for length, _ in points})
    first = min(time for points in found.values() for _, time in points)
    for power, name in ((1, "linear"), (2, "quadratic")):
        times = [first * (n / every[0]) ** power for n in every]
        axes.loglog(every, times, "--", color="grey", linewidth=1, base=2)
        axes.annotate(f"if {name}", (every[-1], times[-1]), color="grey", fontsize="small")
    axes.set_xlabel("tokens")
    clock = report["circumstances"].get("clock", "wall")
    threads = report["circumstances"]["threads"]
    axes.set_ylabel(f"ms, {MODE}, {clock} time, {threads} thread(s)")
    axes.legend(fontsize="small")
    axes.grid(visible=True, which="major", alpha=0.3)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
