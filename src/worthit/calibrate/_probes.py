"""What is timed: one kernel a probe, with the FLOPs and bytes that it stands for.

A backend makes the kernels: torch where it is installed (on one CUDA device, or on the CPU), NumPy
otherwise. Sizes follow the machine: those that must come from memory are several times the last
cache, those that must come from the cache half of it.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, Protocol

Kind = Literal["gemm", "matvec", "cached", "copy", "launch", "decode", "prefill", "attend-launch"]
Kernel = Callable[[], object]

# A size that no last-level cache of today holds, and a cap so that small machines are not swamped.
BEYOND_CACHE_BYTES = 256e6
SHARE_OF_MEMORY = 0.05
# Used where the operating system does not say how large the last cache is.
USUAL_CACHE_BYTES = 8e6
# Decode attention: heads of 128 over 8 shared, as most models of today.
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One kernel: what it computes and moves, in which arithmetic."""

    name: str
    kind: Kind
    math: str = "fp32"
    flops: float = 0.0
    bytes: float = 0.0
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the operating system says of the machine."""

    name: str
    kind: str
    mem_bytes: float
    llc_bytes: float | None
    versions: dict[str, str]


class Backend(Protocol):
    """Where kernels come from."""

    facts: Facts
    maths: tuple[str, ...]

    def kernel(self, probe: Probe) -> Kernel:
        """Allocate what `probe` needs and return the call to be timed."""

    def wait(self) -> None:
        """Return once everything started has finished."""


def probes(backend: Backend) -> tuple[Probe, ...]:
    """Every probe, in the order of a round."""
    facts = backend.facts
    is_gpu = facts.kind == "gpu"
    square = 8192 if is_gpu else 1024
    stream = max(BEYOND_CACHE_BYTES, 4 * (facts.llc_bytes or 0.0))
    stream = min(stream, facts.mem_bytes * SHARE_OF_MEMORY)
    cached = (facts.llc_bytes or USUAL_CACHE_BYTES) / 2
    past = 65536 if is_gpu else 16384
    prompt = 4096 if is_gpu else 512
    found = []
    for math in backend.maths:
        size = WIDTHS[math]
        # Square, and as wide as a prompt of a few hundred tokens.
        for m in (square, square // 4):
            found.append(
                Probe(
                    name=f"product {m} x {square} x {square} {math}",
                    kind="gemm",
                    math=math,
                    flops=2.0 * m * square * square,
                    bytes=size * (m * square * 2 + square * square),
                    shape=(m, square, square),
                )
            )
        for kind, where, n_bytes in (("matvec", "memory", stream), ("cached", "cache", cached)):
            side = max(64, int((n_bytes / size) ** 0.5) // 64 * 64)
            found.append(
                Probe(
                    name=f"matrix by vector from {where} {math}",
                    kind=kind,  # type: ignore[arg-type]  # two of the literals
                    math=math,
                    flops=2.0 * side * side,
                    bytes=float(size) * side * side,
                    shape=(1, side, side),
                )
            )
    math = backend.maths[-1]
    size = WIDTHS[math]
    heads_bytes = 2.0 * KV_HEADS * HEAD_DIM * size
    pairs = prompt * (prompt + 1) / 2
    found += [
        Probe(name="copy", kind="copy", bytes=2 * stream, shape=(int(stream // 4),)),
        Probe(name="smallest product", kind="launch", math=math, shape=(1, 64, 64)),
        Probe(
            name="smallest attention",
            kind="attend-launch",
            math=math,
            shape=(KV_HEADS, KV_HEADS, 1, 16),
        ),
        Probe(
            name=f"attention of one token over {past}",
            kind="decode",
            math=math,
            flops=4.0 * KV_HEADS * HEAD_DIM * past,
            bytes=heads_bytes * past,
            shape=(KV_HEADS, KV_HEADS, 1, past),
        ),
        Probe(
            name=f"attention of a prompt of {prompt}",
            kind="prefill",
            math=math,
            flops=4.0 * HEADS * HEAD_DIM * pairs,
            bytes=4.0 * HEADS * HEAD_DIM * prompt * size,
            shape=(HEADS, HEADS, prompt, prompt),
        ),
    ]
    return tuple(found)


WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}


# Timings a sample. What else the machine does only ever adds to one of them: the least is kept,
# and the median is over the rounds.
TIMINGS = 5


def sample(
    probe: Probe, backend: Backend, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one call of `probe`, after a warm-up; takes about `seconds`."""
    call = backend.kernel(probe)

    def timed(n: int) -> float:
        start = clock()
        for _ in range(n):
            call()
        backend.wait()
        return clock() - start

    timed(1)
    once = max(min(timed(1) for _ in range(TIMINGS)), 1e-7)
    n = max(1, min(int(seconds / TIMINGS / once), 1 << 20))
    return min(timed(n) for _ in range(TIMINGS)) / n


class TorchBackend:
    """Kernels of torch, on the first CUDA device or on the CPU."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.n_threads = torch.get_num_threads()
        self.types = {"fp32": torch.float32, "bf16": torch.bfloat16}
        self.facts = (
            _gpu_facts(torch)
            if self.device == "cuda"
            else _cpu_facts({"torch": torch.__version__, "threads": str(self.n_threads)})
        )
        self.maths = tuple(math for math in ("fp32", "bf16") if self._computes(math))

    def _computes(self, math: str) -> bool:
        try:
            a = self.torch.ones(8, 8, dtype=self.types[math], device=self.device)
            return bool((a @ a)[0, 0] == 8)
        except RuntimeError:  # no kernels for this format here
            return False

    def _random(self, math: str, *shape: int) -> Any:
        """One block of random numbers, repeated: zeros would spare a GPU its power limit."""
        n = prod(shape)
        block = self.torch.rand(min(n, 1 << 16), device=self.device) * 2 - 1
        block = block.to(self.types[math])
        return block.repeat(-(-n // len(block)))[:n].view(shape)

    def kernel(self, probe: Probe) -> Kernel:
        """See `Backend`."""
        torch, shape = self.torch, probe.shape
        # Starting a kernel is one thread's work; waiting for the others is in the larger probes.
        is_start = probe.kind in ("launch", "attend-launch")
        torch.set_num_threads(1 if is_start else self.n_threads)
        if probe.kind == "copy":
            # Written once before timing, so that every page is there.
            source, target = (
                torch.ones(shape[0], dtype=torch.float32, device=self.device) for _ in range(2)
            )
            return lambda: target.copy_(source)
        if probe.kind in ("decode", "prefill", "attend-launch"):
            q_heads, kv_heads, new, past = shape
            q = self._random(probe.math, 1, q_heads, new, HEAD_DIM)
            k, v = (self._random(probe.math, 1, kv_heads, past, HEAD_DIM) for _ in range(2))
            attend = torch.nn.functional.scaled_dot_product_attention
            return lambda: attend(q, k, v, is_causal=probe.kind == "prefill")
        m, k, n = shape
        x, w = self._random(probe.math, m, k), self._random(probe.math, n, k)
        linear = torch.nn.functional.linear
        return lambda: linear(x, w)

    def wait(self) -> None:
        """See `Backend`."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()


class NumpyBackend:
    """Kernels of NumPy: fp32 alone, attention as its plain products."""

    maths: tuple[str, ...] = ("fp32",)

    def __init__(self) -> None:
        # The command line starts BLAS with one thread to be quick; here every core counts.
        if "numpy" not in sys.modules and os.environ.get("OPENBLAS_NUM_THREADS") == "1":
            del os.environ["OPENBLAS_NUM_THREADS"]
        import numpy as np

        self.np = np
        self.facts = _cpu_facts({"numpy": np.__version__})

    def kernel(self, probe: Probe) -> Kernel:
        """See `Backend`."""
        np, shape = self.np, probe.shape
        if probe.kind == "copy":
            source, target = (np.ones(shape[0], np.float32) for _ in range(2))
            return lambda: np.copyto(target, source)
        rng = np.random.default_rng(0)
        if probe.kind in ("decode", "prefill", "attend-launch"):
            heads, _, new, past = shape
            q = rng.random((heads, new, HEAD_DIM), np.float32)
            k, v = (rng.random((heads, past, HEAD_DIM), np.float32) for _ in range(2))

            def attend() -> object:
                scores = q @ k.transpose(0, 2, 1)
                scores = np.exp(scores - scores.max(-1, keepdims=True))
                return (scores / scores.sum(-1, keepdims=True)) @ v

            return attend
        m, k_, n = shape
        x, w = rng.random((m, k_), np.float32), rng.random((n, k_), np.float32)
        return lambda: x @ w.T

    def wait(self) -> None:
        """See `Backend`: NumPy never runs ahead."""


def best_backend() -> Backend:
    """Torch where it is installed, NumPy otherwise."""
    import importlib.util

    return TorchBackend() if importlib.util.find_spec("torch") else NumpyBackend()


def _cpu_facts(versions: dict[str, str]) -> Facts:
    return Facts(
        name=cpu_name(),
        kind="cpu",
        mem_bytes=float(memory_bytes()),
        llc_bytes=last_cache_bytes(),
        versions={"python": platform.python_version(), **versions},
    )


def _gpu_facts(torch: Any) -> Facts:
    properties = torch.cuda.get_device_properties(0)
    return Facts(
        name=str(properties.name),
        kind="gpu",
        mem_bytes=float(properties.total_memory),
        llc_bytes=float(getattr(properties, "L2_cache_size", 0)) or None,
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": str(torch.version.cuda),
        },
    )


def cpu_name() -> str:
    """The processor's own name, with how many cores this process may use."""
    name = ""
    if Path("/proc/cpuinfo").exists():
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    elif sys.platform == "darwin":
        name = _said("sysctl", "-n", "machdep.cpu.brand_string")
    name = name or platform.processor() or platform.machine() or "unknown processor"
    return f"{name}, {n_cores()} core{'s' if n_cores() > 1 else ''}"


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Main memory; 8 GB where the operating system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return int(_said("sysctl", "-n", "hw.memsize") or 8e9)


def last_cache_bytes() -> float | None:
    """The last-level cache that one core sees, or None where the operating system does not say."""
    found = []
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level = int((index / "level").read_text())
            text = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        unit = {"K": 1024, "M": 1024**2}.get(text[-1:], 1)
        found.append((level, float(text.rstrip("KM")) * unit))
    if found:
        return max(found)[1]
    said = _said("sysctl", "-n", "hw.l3cachesize") or _said("sysctl", "-n", "hw.l2cachesize")
    return float(said) or None if said else None


def _said(*command: str) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()
