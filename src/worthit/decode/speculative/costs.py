"""The verify-cost curve c(M): what a pass over M tokens of one sequence takes on this machine.

Measured once for a model, a format and a number of threads, in about a second, and kept in the
cache folder. On a CPU it is what decides about speculation: bf16 products are nearly flat up to a
few rows, packed 4-bit ones are not.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from worthit.decode.speculative.control import Costs
from worthit.nn.decoder import Decoder
from worthit.nn.inference import products
from worthit.spec.load import calibration_path

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 32)
# What a pass reads beside the weights.
N_PAST = 128
N_ROUNDS = 3
# What is older was measured on a machine in another mood.
LONGEST_KEPT_S = 30 * 86400.0


def measure(run: Callable[[int], None], rows: tuple[int, ...] = ROWS) -> Costs:
    """The least of a few times of `run(n)` for each n, sizes taken in turn.

    On one thread the processor's time is taken: other work on the machine does not count.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for n in rows:
        run(n)
    seconds = [float("inf")] * len(rows)
    for _ in range(N_ROUNDS):
        for i, n in enumerate(rows):
            started = clock()
            run(n)
            seconds[i] = min(seconds[i], clock() - started)
    return Costs(rows, tuple(seconds))


def costs_of_model(model: Decoder) -> Costs:
    """c(M) of plain passes of `model` over a cache; kept where the model has a source."""
    n_past = max(1, min(N_PAST, model.spec.context_len - ROWS[-1] - 1))
    rows = tuple(n for n in ROWS if n_past + n <= model.spec.context_len)

    def make() -> Costs:
        with torch.inference_mode():
            cache = model.new_cache()
            ids = torch.arange(n_past + ROWS[-1], device=model.device)[None] % model.spec.vocab_size
            model(ids[:, :n_past], cache=cache, last_only=True)

            def run(n: int) -> None:
                model(ids[:, :n], cache=cache.fork())

            return measure(run, rows)

    return kept(model, "loop", make)


def kept(model: Decoder, how: str, make: Callable[[], Costs]) -> Costs:
    """What was measured of this model before, or `make()`; `how` names the kind of pass."""
    if model.source is None:
        return make()
    facts = {
        "version": 2,
        "source": model.source,
        "name": model.spec.name,
        "dtype": str(model.dtype),
        "products": products(model),
        "is_compiled": model.native is not None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": [platform.machine(), platform.processor(), os.cpu_count()],
        "how": how,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    path = calibration_path().parent / "verify-costs" / f"{digest}.json"
    found = _read(path)
    if found is None:
        found = make()
        _write(path, {"facts": facts, "rows": found.rows, "seconds": found.seconds})
    return found


def _read(path: Path) -> Costs | None:
    try:
        if time.time() - path.stat().st_mtime > LONGEST_KEPT_S:
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(int(n) for n in record["rows"])
        seconds = tuple(float(s) for s in record["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or damaged: measuring again repairs it
    is_whole = len(rows) == len(seconds) > 0 and all(s > 0 for s in seconds)
    return Costs(rows, seconds) if is_whole else None


def _write(path: Path, record: dict[str, Any]) -> None:
    """Keep it where that is possible; a folder that cannot be written costs a second each time."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError:
        return
