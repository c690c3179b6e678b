"""The run: rounds over all probes, each sample kept at once, then the fit and the file."""

from __future__ import annotations

import contextlib
import datetime
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from worthit.calibrate._fit import fit, spread
from worthit.calibrate._probes import Backend, Probe, best_backend, probes, sample
from worthit.calibrate._store import (
    check_writable,
    drop_partial,
    load_partial,
    save_partial,
    write,
)
from worthit.errors import WorthitError
from worthit.spec.codec import to_json
from worthit.spec.load import calibration_path

# Samples a probe, and seconds a sample, of a full run (about a minute) and of a quick one.
FULL = (7, 0.4)
QUICK = (3, 0.05)

# Called with samples done, samples in all, and what is measured next.
Progress = Callable[[int, int, str], None]
Sample = Callable[[Probe, Backend, float], float]


def calibrate(
    *,
    quick: bool = False,
    progress: Progress | None = None,
    backend: Backend | None = None,
    take: Sample = sample,
) -> dict[str, Any]:
    """Measure this machine, store it for `--on this`, and return what was measured.

    Args:
        quick: seconds in place of a minute, for a first look; intervals are the same, trust less.
        progress: called before every sample; a bar on stderr by default.
        backend, take: where kernels come from and how one is timed, for tests.

    Raises:
        WorthitError: the cache folder cannot be written; said before anything is measured.
        MeasurementInconclusive: the machine was too busy; the old calibration stays.
        KeyboardInterrupt: stopped; samples are kept and the next run goes on from them.
    """
    check_writable()
    started = time.monotonic()
    backend = best_backend() if backend is None else backend
    n_rounds, seconds = QUICK if quick else FULL
    todo = probes(backend)
    fingerprint = {
        "name": backend.facts.name,
        "versions": backend.facts.versions,
        "seconds": seconds,
        "probes": [probe.name for probe in todo],
    }
    samples = load_partial(fingerprint)
    n_kept = sum(len(values) for values in samples.values())
    if n_kept:
        _say(f"going on with {n_kept} samples of an earlier run")
    if "torch" not in backend.facts.versions:
        _say("torch is not installed: measuring NumPy, in fp32 alone (worthit[torch] adds bf16)")
    total = n_rounds * len(todo)
    with _bar(total) if progress is None else contextlib.nullcontext(progress) as report:
        try:
            with _termination_as_interrupt():
                for probe, n_done in _pending(todo, samples, n_rounds):
                    report(n_done, total, probe.name)
                    values = samples.setdefault(probe.name, [])
                    values.append(take(probe, backend, seconds))
                    save_partial(fingerprint, samples)
                report(total, total, "")
        except KeyboardInterrupt:
            _say(
                "stopped; the earlier calibration is as it was, and what was measured is kept: "
                "`worthit calibrate` goes on from here"
            )
            raise
        except OSError as error:
            raise WorthitError(
                f"samples could not be kept in {calibration_path().parent} ({error.strerror}); "
                "make room there, or set XDG_CACHE_HOME to another folder"
            ) from None
    date = datetime.date.today().isoformat()
    try:
        device = fit(samples, todo, backend.facts, date=date)
    except WorthitError:
        # Samples that mean nothing must not be gone on from.
        drop_partial()
        raise
    record = to_json(device)
    write(calibration_path(), record)
    drop_partial()
    return {
        "schema": "worthit.calibrate/1",
        "path": str(calibration_path()),
        "device": record,
        "versions": backend.facts.versions,
        "seconds": time.monotonic() - started,
        "measured": [_measured(probe, samples[probe.name]) for probe in todo],
    }


def _pending(
    todo: tuple[Probe, ...], samples: dict[str, list[float]], n_rounds: int
) -> Iterator[tuple[Probe, int]]:
    """Rounds over all probes, so that a slow moment of the machine hits every one alike."""
    for round_ in range(n_rounds):
        for probe in todo:
            if len(samples.get(probe.name, ())) <= round_:
                yield probe, sum(len(values) for values in samples.values())


def _measured(probe: Probe, values: list[float]) -> dict[str, Any]:
    low, high = spread(values)
    middle = statistics.median(values)
    return {
        "probe": probe.name,
        "median_s": middle,
        "p20_s": low,
        "p80_s": high,
        "n": len(values),
        "flops_per_s": probe.flops / middle,
        "bytes_per_s": probe.bytes / middle,
    }


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does; signals can only be caught in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Progress]:
    """A bar with the time left on a terminal; a line a tenth anywhere else."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task("", total=total)
            yield lambda done, all_, what: shown.update(task, completed=done, description=what)
        return
    started, said, first = time.monotonic(), -1, -1

    def line(done: int, all_: int, what: str) -> None:
        nonlocal said, first
        first = done if first < 0 else first
        if done * 10 // all_ > said:
            said = done * 10 // all_
            elapsed = time.monotonic() - started
            left = elapsed / (done - first) * (all_ - done) if done > first else 0.0
            more = f", about {left:.0f} s left" if left >= 1 else ""
            _say(f"calibrating: {100 * done // all_} %{more}")

    yield line


def _say(message: str) -> None:
    print(f"worthit: {message}", file=sys.stderr, flush=True)  # noqa: T201  # progress, not output


def lines(record: dict[str, Any]) -> list[str]:
    """A calibration as a person reads it."""
    device, e = record["device"], record["device"]["efficiency"]
    peaks = ", ".join(
        f"{value / 1e12:.3g} TFLOP/s {name}"
        for name, value in device["flops_per_s"].items()
        if value
    )
    cache = device["llc_bytes_per_s"]
    found = [
        f"{device['name']}, measured in {record['seconds']:.0f} s",
        f"  products        {peaks}; {e['gemm_compute']:.0%} of it in other shapes",
        f"  memory          {device['mem_bytes_per_s'] / 1e9:.3g} GB/s; matrix by vector reaches "
        f"{e['gemm_memory']:.0%}, decode attention {e['decode_attention_memory']:.0%}",
    ]
    if cache:
        found.append(
            f"  last cache      {device['llc_bytes'] / 1e6:.3g} MB, "
            f"{cache * e['gemm_memory'] / 1e9:.3g} GB/s by matrix and vector"
        )
    found += [
        f"  attention       {e['prefill_attention_compute']:.0%} of the peak on a prompt",
        f"  starting        {e['launch_s'] * 1e6:.3g} us a kernel, "
        f"{e['decode_attention_launch_s'] * 1e6:.3g} us an attention",
        f"kept in {record['path']}; use it: worthit judge grammar-tutor --on this",
    ]
    return found
