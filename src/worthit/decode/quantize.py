"""From a checkpoint to one in few bits, with perplexity before and after: `worthit quantize`.

What it will take is worked out before it is begun, the folder appears whole or not at all, and what
was written is read back and compared with what was in memory.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worthit.decode.corpus import sequences
from worthit.decode.perplexity import Perplexity, perplexity
from worthit.decode.tokenizer import Tokenizer, load_tokenizer
from worthit.decode.tokenizer_files import copy_tokenizer
from worthit.errors import InputError, WorthitError
from worthit.nn.decoder import Decoder
from worthit.nn.load import checkpoint_path, load_model, save_model
from worthit.nn.quant.awq import ALPHAS, SHRINKS
from worthit.nn.quant.grid import grid_of
from worthit.nn.quant.quantize import Method, Quantized, nbytes, quantize, targets

# Calls `(what, done, of)` as each piece of work goes on.
OnWork = Callable[[str, int, int], None]
# A probe of this machine's products: long enough to be one, short enough not to be felt.
PROBE_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked for.

    Attributes:
        weights, embeddings, method, act_order: see `worthit.nn.quant.quantize.quantize`.
        n_sequences, length: of calibration text.
        calibration: a file of text; None for the standard library's.
        n_eval: tokens of perplexity, in rows of `length`; 0 leaves it out.
    """

    source: str
    out: Path
    weights: str
    embeddings: str | None = "int8"
    method: Method = "rtn"
    act_order: bool = True
    n_sequences: int = 32
    length: int = 512
    calibration: Path | None = None
    n_eval: int = 6144

    @property
    def is_calibrated(self) -> bool:
        """Whether it reads calibration text."""
        return self.method != "rtn"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job takes on this machine: `seconds` from its FLOPs and a product timed just now."""

    flops: float
    flops_per_s: float
    memory_bytes: int

    @property
    def seconds(self) -> float:
        """Expected time."""
        return self.flops / self.flops_per_s


@dataclass(kw_only=True)
class Prepared:
    """A job with its model and texts in memory, ready to run."""

    job: Job
    path: Path
    model: Decoder
    tokenizer: Tokenizer | None
    calibration: Tensor | None
    held_out: Tensor | None
    estimate: Estimate


def prepare(job: Job) -> Prepared:
    """Load, tokenize and estimate; nothing is written.

    Raises:
        InputError: a folder that is there already, settings out of range, or too short a text.
    """
    grid_of(job.weights)
    _check_out(job.out)
    problems = [
        f"{name}: must be at least {least}, got {value}"
        for name, value, least in (
            ("sequences", job.n_sequences, 1),
            ("length", job.length, 2),
            ("eval-tokens", job.n_eval, 0),
        )
        if value < least
    ]
    if problems:
        raise InputError(*problems)
    path = checkpoint_path(job.source)
    model = load_model(path, dtype="bf16", packed=False)
    length = min(job.length, model.spec.context_len)
    tokenizer = None
    if job.is_calibrated or job.n_eval:
        tokenizer = load_tokenizer(path)
    calibration = held_out = None
    if job.is_calibrated:
        assert tokenizer is not None
        calibration = sequences(tokenizer, job.n_sequences, length, file=job.calibration)
    if job.n_eval:
        assert tokenizer is not None
        rows = max(1, job.n_eval // length)
        held_out = sequences(tokenizer, rows, length, part="held-out")
    return Prepared(
        job=job,
        path=path,
        model=model,
        tokenizer=tokenizer,
        calibration=calibration,
        held_out=held_out,
        estimate=estimate(model, job, calibration, held_out),
    )


def estimate(
    model: Decoder, job: Job, calibration: Tensor | None, held_out: Tensor | None
) -> Estimate:
    """FLOPs of all passes and of the method, and the memory at its peak."""
    linears = [linear for linear, _ in targets(model, grid_of(job.weights))[0].values()]
    inside = sum(p.numel() for p in model.layers.parameters())
    every = sum(p.numel() for p in model.parameters())
    flops, memory = 0.0, 2 * nbytes(model)
    if calibration is not None:
        tokens = calibration.numel()
        flops += 2 * 2 * inside * tokens  # through every layer twice
        # One of each input's width; sums of x x^T, then the method on out x in x in.
        flops += sum(2 * tokens * m.in_features**2 for m in linears) / 2
        tries = len(ALPHAS) + len(SHRINKS) if job.method == "awq" else 2
        flops += sum(2 * tries * m.out_features * m.in_features**2 for m in linears)
        memory += 3 * tokens * model.spec.d_model * 2 + 4 * max(m.in_features for m in linears) ** 2
    if held_out is not None:
        flops += 2 * 2 * every * held_out.numel()
        memory += 4 * held_out.shape[1] * model.spec.vocab_size * 2
    return Estimate(
        flops=flops, flops_per_s=product_rate(model.spec.d_model), memory_bytes=int(memory)
    )


def product_rate(width: int) -> float:
    """FLOPs a second of a bf16 product of a model's width, as this machine does it now."""
    a, b = torch.randn(512, width).bfloat16(), torch.randn(4 * width, width).bfloat16()
    nn.functional.linear(a, b)
    started, n = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < PROBE_S:
        nn.functional.linear(a, b)
        n += 1
    return n * 2 * 512 * width * 4 * width / spent


def run(prepared: Prepared, on_work: OnWork | None = None) -> dict[str, Any]:
    """Quantize, write, read back, and say what it cost: the record of `worthit quantize`.

    Raises:
        WorthitError: what was read back differs from what was in memory.
    """
    job, model = prepared.job, prepared.model
    say = on_work or (lambda what, done, of: None)
    timings: dict[str, float] = {}

    def evaluated(what: str) -> Perplexity | None:
        if prepared.held_out is None:
            return None
        with _timed(timings, f"{what}_s"):
            return perplexity(model, prepared.held_out, on_progress=lambda i, n: say(what, i, n))

    before = evaluated("perplexity before")
    with _timed(timings, "quantize_s"):
        done = quantize(
            model,
            job.weights,
            method=job.method,
            embeddings=job.embeddings,
            calibration=prepared.calibration,
            act_order=job.act_order,
            on_progress=lambda i, n: say(job.method, i, n),
        )
    if prepared.calibration is not None:
        about = _calibration(job, prepared.calibration)
        done.config["calibration"] = about
    after = evaluated("perplexity after")
    with _timed(timings, "write_s"):
        has_tokenizer = _write(prepared, model)
    return _record(prepared, done, before, after, timings, has_tokenizer)


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[name.replace(" ", "_")] = time.perf_counter() - started


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already; give a folder that is not, or an empty one")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: its folder {out.absolute().parent} is not there; make it first")


def _write(prepared: Prepared, model: Decoder) -> bool:
    """The folder, whole or not at all; whether it has a tokenizer."""
    out = prepared.job.out.absolute()
    needed, free = 2 * nbytes(model), shutil.disk_usage(out.parent).free
    if needed > free:
        raise WorthitError(f"{out}: needs {needed} bytes with what is on its way, got {free} free")
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        save_model(model, partial)
        has_tokenizer = copy_tokenizer(prepared.path, partial)
        _compare(load_model(partial), model)
        partial.chmod(0o755)
        if out.is_dir():
            out.rmdir()
        partial.replace(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return has_tokenizer


def _compare(read: Decoder, model: Decoder) -> None:
    ids = torch.arange(8)[None] % model.spec.vocab_size
    with torch.inference_mode():
        if not torch.equal(read(ids), model(ids)):
            raise WorthitError("what was written reads back as another model; nothing was kept")


def _calibration(job: Job, ids: Tensor) -> dict[str, Any]:
    python = f"standard library of Python {platform.python_version()}"
    return {
        "text": python if job.calibration is None else job.calibration.name,
        "sequences": ids.shape[0],
        "length": ids.shape[1],
    }


def _record(
    prepared: Prepared,
    done: Quantized,
    before: Perplexity | None,
    after: Perplexity | None,
    timings: dict[str, float],
    has_tokenizer: bool,
) -> dict[str, Any]:
    job = prepared.job
    found = None
    if before is not None and after is not None and prepared.held_out is not None:
        found = {
            "text": f"standard library of Python {platform.python_version()}, held out",
            "n_tokens": before.n_tokens,
            "length": prepared.held_out.shape[1],
            "before": before.value,
            "after": after.value,
            "increase": after.value / before.value - 1,
        }
    return {
        "schema": "worthit.quantize/1",
        "model": job.source,
        "path": str(prepared.path),
        "out": str(job.out),
        "quantization": done.config,
        "n_matrices_stored": done.n_stored,
        "n_params_stored": done.n_params_stored,
        "n_params_kept": done.n_params_kept,
        "kept": done.kept,
        "bytes_before": done.bytes_before,
        "bytes_after": done.bytes_after,
        "perplexity": found,
        "has_tokenizer": has_tokenizer,
        "estimate": {
            "seconds": prepared.estimate.seconds,
            "flops": prepared.estimate.flops,
            "flops_per_s": prepared.estimate.flops_per_s,
            "memory_bytes": prepared.estimate.memory_bytes,
        },
        "timings": timings,
        "notes": list(done.notes),
    }
