"""Calibration: the fit against a machine whose constants are known, and every way to be stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest

from worthit.calibrate import _run, _store, calibrate, lines
from worthit.calibrate._fit import fit
from worthit.calibrate._probes import Backend, Facts, Probe, probes, sample
from worthit.errors import MeasurementInconclusive, WorthitError
from worthit.judge.judge import judge
from worthit.spec.case import Hardware
from worthit.spec.load import build_case, calibration_path, load_device, load_preset

# A machine with round constants: 2 TFLOP/s fp32 and twice that in bf16, 100 GB/s.
PEAK = {"fp32": 2e12, "bf16": 4e12}
BANDWIDTH, CACHE = 100e9, 400e9
SHARE = {"matvec": 0.8, "cached": 0.8, "decode": 0.5, "copy": 1.0}
LAUNCH, ATTEND_LAUNCH = 5e-6, 2e-5


class Made:
    """A backend that never computes."""

    maths: tuple[str, ...] = ("fp32", "bf16")
    facts = Facts(
        name="Made-up processor, 4 cores",
        kind="cpu",
        mem_bytes=64e9,
        llc_bytes=32e6,
        versions={"python": "3.11.0", "torch": "2.13.0"},
    )

    def kernel(self, probe: Probe) -> Callable[[], object]:
        return lambda: None

    def wait(self) -> None:
        pass


def machine(probe: Probe, backend: Backend, seconds: float) -> float:
    """What the made-up machine takes."""
    if probe.kind == "launch":
        return LAUNCH
    if probe.kind == "attend-launch":
        return ATTEND_LAUNCH
    if probe.kind == "gemm":
        is_square = probe.shape[0] == probe.shape[1]
        return probe.flops / (PEAK[probe.math] * (1.0 if is_square else 0.6)) + LAUNCH
    if probe.kind == "prefill":
        return probe.flops / (PEAK[probe.math] * 0.25) + ATTEND_LAUNCH
    start = {"decode": ATTEND_LAUNCH, "copy": 0.0}.get(probe.kind, LAUNCH)
    rate = CACHE if probe.kind == "cached" else BANDWIDTH
    return probe.bytes / (rate * SHARE[probe.kind]) + start


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def run(take: _run.Sample = machine, **settings: Any) -> dict[str, Any]:
    return calibrate(backend=Made(), take=take, progress=lambda *_: None, **settings)


def test_fit_finds_the_constants_of_the_machine() -> None:
    device = load_after_run()
    assert device.flops_per_s["fp32"] == pytest.approx(2e12)
    assert device.flops_per_s["bf16"] == pytest.approx(4e12)
    assert device.flops_per_s["fp8"] is None
    assert device.mem_bytes_per_s == pytest.approx(100e9)
    assert device.llc_bytes_per_s == pytest.approx(400e9)
    e = device.efficiency
    # The median of square products at the peak and narrow ones at 60 % of it.
    assert e.gemm_compute == pytest.approx(0.8)
    assert e.gemm_memory == pytest.approx(0.8)
    assert e.decode_attention_memory == pytest.approx(0.5)
    assert e.prefill_attention_compute == pytest.approx(0.25)
    assert e.launch_s == pytest.approx(5e-6)
    assert e.decode_attention_launch_s == pytest.approx(2e-5)
    assert e.is_calibrated


def load_after_run() -> Any:
    run()
    return load_device("this")


def test_what_is_stored_is_a_device_with_its_origin() -> None:
    record = run()
    assert record["path"] == str(calibration_path())
    stored = json.loads(calibration_path().read_text())
    assert stored == record["device"]
    assert stored["id"] == "this"
    assert stored["name"] == "Made-up processor, 4 cores"
    assert stored["source"] == "measured by worthit calibrate"
    assert "torch 2.13.0" in stored["note"]
    assert len(stored["date"]) == 10
    assert not _store.partial_path().exists()
    assert any("2 TFLOP/s fp32" in line for line in lines(record))


def test_verdicts_on_this_machine_say_calibrated() -> None:
    run()
    found = judge(build_case(load_preset("grammar-tutor"), on="this"), only=["gqa", "mqa", "mla"])
    assert {v["evidence"] for v in found["verdicts"]} == {"calibrated"}


def test_every_sample_is_reported() -> None:
    seen: list[tuple[int, int]] = []
    calibrate(backend=Made(), take=machine, progress=lambda n, of, what: seen.append((n, of)))
    total = 7 * len(probes(Made()))
    assert seen == [(n, total) for n in range(total + 1)]


def test_rounds_are_interleaved() -> None:
    order: list[str] = []

    def take(probe: Probe, backend: Backend, seconds: float) -> float:
        order.append(probe.name)
        return machine(probe, backend, seconds)

    run(take, quick=True)
    names = [probe.name for probe in probes(Made())]
    assert order == names * 3


def test_a_sample_is_one_call_whatever_the_batch() -> None:
    """A clock that only calls move: each takes 2 ms."""
    now = [0.0]

    class Slow(Made):
        def kernel(self, probe: Probe) -> Callable[[], object]:
            return lambda: now.__setitem__(0, now[0] + 2e-3)

    probe = probes(Made())[0]
    assert sample(probe, Slow(), 0.1, clock=lambda: now[0]) == pytest.approx(2e-3)


# Nonsense is refused, and costs nothing that was there.


@pytest.mark.parametrize(
    "wrong",
    [
        lambda seconds, n: seconds * 1e-6,
        lambda seconds, n: seconds * 1e6,
        lambda seconds, n: float("inf"),
        lambda seconds, n: seconds * (10 if n % 3 else 1),
    ],
    ids=["too fast", "too slow", "never", "unsteady"],
)
def test_nonsense_is_not_stored(wrong: Callable[[float, int], float]) -> None:
    run()
    before = calibration_path().read_bytes()
    calls: dict[str, int] = {}

    def take(probe: Probe, backend: Backend, seconds: float) -> float:
        calls[probe.name] = calls.get(probe.name, -1) + 1
        return wrong(machine(probe, backend, seconds), calls[probe.name])

    with pytest.raises(MeasurementInconclusive, match="run `worthit calibrate` again"):
        run(take)
    assert calibration_path().read_bytes() == before
    # Going on from nonsense would repeat it.
    assert not _store.partial_path().exists()


def test_fit_refuses_a_share_above_one() -> None:
    todo = probes(Made())
    samples = {p.name: [machine(p, Made(), 0.1)] * 7 for p in todo}
    (prefill,) = [p.name for p in todo if p.kind == "prefill"]
    found = fit(samples, todo, Made.facts, date="2025-01-01")
    assert found.efficiency.prefill_attention_compute <= 1
    samples[prefill] = [-1.0] * 7
    with pytest.raises(MeasurementInconclusive):
        fit(samples, todo, Made.facts, date="2025-01-01")


# Stopped at any moment: nothing lost, and the next run goes on.


def stop_after(n: int) -> _run.Sample:
    left = [n]

    def take(probe: Probe, backend: Backend, seconds: float) -> float:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return machine(probe, backend, seconds)

    return take


def test_an_interrupt_keeps_the_old_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    before = calibration_path().read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run(stop_after(20))
    assert calibration_path().read_bytes() == before
    assert "`worthit calibrate` goes on from here" in capsys.readouterr().err
    calls: list[str] = []

    def take(probe: Probe, backend: Backend, seconds: float) -> float:
        calls.append(probe.name)
        return machine(probe, backend, seconds)

    run(take)
    assert len(calls) == 7 * len(probes(Made())) - 20
    assert "going on with 20 samples" in capsys.readouterr().err
    assert not _store.partial_path().exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: "",
        lambda record: json.dumps(record)[:-20],
        lambda record: json.dumps([]),
        lambda record: json.dumps({**record, "saved": record["saved"] - 7 * 3600}),
        lambda record: json.dumps({**record, "saved": record["saved"] + 9999}),
        lambda record: json.dumps({**record, "fingerprint": {"name": "another machine"}}),
        lambda record: json.dumps({**record, "samples": {"x": ["fast"]}}),
        lambda record: json.dumps({**record, "samples": None}),
    ],
)
def test_samples_of_another_time_or_machine_are_not_used(
    damage: Callable[[dict[str, Any]], str],
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(stop_after(20))
    path = _store.partial_path()
    path.write_text(damage(json.loads(path.read_text())))
    record = run()
    assert all(row["n"] == 7 for row in record["measured"])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_stopped_by_a_signal(how: signal.Signals, cache_home: Path) -> None:
    run()
    before = calibration_path().read_bytes()
    script = textwrap.dedent(
        """
        import signal, sys, time
        sys.path.insert(0, sys.argv[1])
        # A job in the background inherits it ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        import test_calibrate as t
        from worthit.calibrate import calibrate

        def slow(probe, backend, seconds):
            time.sleep(0.5)
            return t.machine(probe, backend, seconds)

        try:
            calibrate(backend=t.Made(), take=slow)
        except KeyboardInterrupt:
            sys.exit(130)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(Path(__file__).parent)],
        env={**os.environ, "XDG_CACHE_HOME": str(cache_home)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not _store.partial_path().exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert calibration_path().read_bytes() == before
    assert load_device("this").efficiency.is_calibrated
    assert json.loads(_store.partial_path().read_text())["samples"]
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert "goes on from here" in said


# A folder that cannot be written says so first.


def refuse(probe: Probe, backend: Backend, seconds: float) -> float:
    raise AssertionError("measured although nothing can be kept")


def test_an_unwritable_folder_is_said_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a-file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(WorthitError, match=r"cannot be written .*set XDG_CACHE_HOME") as caught:
        run(refuse)
    assert caught.value.exit_code == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_read_only_folder_is_said_before_measuring(cache_home: Path) -> None:
    cache_home.chmod(0o500)
    with pytest.raises(WorthitError, match="Permission denied"):
        run(refuse)
    cache_home.chmod(0o700)


def test_a_full_disk_stops_with_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    before = calibration_path().read_bytes()

    def full(path: Path, data: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_store, "write", full)
    with pytest.raises(WorthitError, match="No space left on device"):
        run()
    assert calibration_path().read_bytes() == before


def test_without_torch_numpy_is_measured_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    class Plain(Made):
        maths = ("fp32",)
        facts = replace(Made.facts, versions={"python": "3.11.0", "numpy": "2.0.0"})

    record = calibrate(backend=Plain(), take=machine, progress=lambda *_: None, quick=True)
    assert "torch is not installed: measuring NumPy" in capsys.readouterr().err
    assert record["device"]["flops_per_s"]["bf16"] is None


@pytest.mark.parametrize("kind", ["NumpyBackend", "TorchBackend"])
def test_every_kernel_runs(kind: str) -> None:
    """Small ones: each probe's call works, and does what its FLOPs and bytes say."""
    from worthit.calibrate import _probes

    if kind == "TorchBackend":
        pytest.importorskip("torch")
    backend = getattr(_probes, kind)()
    backend.facts = replace(backend.facts, kind="cpu", llc_bytes=1e5, mem_bytes=2e7)
    for probe in probes(backend):
        small = probe
        if probe.kind == "gemm":
            small = replace(probe, shape=(16, 64, 64))
        if probe.kind in ("decode", "prefill"):
            small = replace(probe, shape=(*probe.shape[:2], min(probe.shape[2], 64), 64))
        assert sample(small, backend, 0.0) > 0


@pytest.mark.slow
def test_this_machine_for_real() -> None:
    started = time.monotonic()
    try:
        record = calibrate(quick=True)
    except MeasurementInconclusive:
        pytest.skip("this machine is too busy to be measured")
    assert time.monotonic() - started < 60
    assert load_device("this").efficiency.is_calibrated
    assert record["device"]["flops_per_s"]["fp32"] > 1e8


def test_only_what_was_measured_becomes_narrower() -> None:
    """No 4-bit kernel, expert or scan is timed: what they gain stays as uncertain as it was."""
    run()
    this = load_device("this")
    guessed = replace(this, efficiency=replace(this.efficiency, is_calibrated=False))

    def left(technique: str) -> float:
        widths = []
        for device in (this, guessed):
            case = build_case(load_preset("llama-3.1-8b"), on=Hardware(device=device), output=500)
            (verdict,) = judge(case, only=[technique])["verdicts"]
            widths.append(log(verdict["predicted"]["high"] / verdict["predicted"]["low"]))
        return widths[0] / widths[1]

    # Attention was timed: a third is left. Of 4 bits only the layers around them were.
    assert left("kv-quantization") < 0.5
    assert left("int4-weights") > 0.7


def test_a_format_with_slow_kernels_does_not_speak_for_the_memory() -> None:
    def take(probe: Probe, backend: Backend, seconds: float) -> float:
        is_slow = probe.math == "bf16" and probe.kind in ("matvec", "cached")
        return machine(probe, backend, seconds) * (4 if is_slow else 1)

    run(take)
    device = load_device("this")
    assert device.efficiency.gemm_memory == pytest.approx(0.8)
    assert device.llc_bytes_per_s == pytest.approx(400e9)
