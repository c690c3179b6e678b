"""Compile `decoder.cpp` for this machine when it is first needed, and load it; or say why not.

The library stands in the user's cache folder, under a name made of everything that it depends on.
`WORTHIT_NATIVE=0` leaves it out; `CXX` names another compiler than `g++` or `clang++`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("decoder.cpp")
# Products and sums are fused where the source says so and nowhere else: its bits are promised.
FLAGS = (
    "-O3", "-march=native", "-ffp-contract=off", "-std=c++17", "-fopenmp", "-fPIC", "-shared",
)  # fmt: skip
# What the source asks for, as Linux calls it.
NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512_bf16"}
MOST_SECONDS = 120


class Missing(Exception):
    """Why there is no library here."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None where they cannot be had, see `why_not`."""
    try:
        return _loaded()
    except Missing:
        return None


def why_not() -> str | None:
    """What stands in the way of the library; None where nothing does."""
    try:
        _loaded()
    except Missing as error:
        return str(error)
    return None


def _loaded() -> ctypes.CDLL:
    if os.environ.get("WORTHIT_NATIVE", "1") == "0":
        raise Missing("WORTHIT_NATIVE=0")
    missing = NEEDED - _cpu_flags()
    if missing:
        raise Missing(f"this CPU has no {', '.join(sorted(missing))}")
    # torch brings the OpenMP that both then share.
    import torch  # noqa: F401

    try:
        found = ctypes.CDLL(str(_compiled()))
    except OSError as error:
        raise Missing(f"it does not load: {error}") from error
    found.worthit_multiply.restype = found.worthit_pass.restype = None
    return found


def _compiled() -> Path:
    compiler = next(filter(None, map(shutil.which, _compilers())), None)
    if compiler is None:
        raise Missing(f"no C++ compiler: none of {', '.join(_compilers())} is on PATH")
    facts = "\0".join([SOURCE.read_text(encoding="utf-8"), *FLAGS, compiler, _cpu_model()])
    folder = _folder()
    target = folder / f"decoder-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.so"
    if target.is_file():
        return target
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / target.name
            line = [compiler, *FLAGS, "-o", str(made), str(SOURCE)]
            ran = subprocess.run(
                line, capture_output=True, text=True, timeout=MOST_SECONDS, check=False
            )
            if ran.returncode:
                raise Missing(f"{compiler} says: {ran.stderr.strip()[:500]}")
            # In one move: others may be compiling the same.
            made.replace(target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"it cannot be compiled: {error}") from error
    return target


def _compilers() -> tuple[str, ...]:
    own = os.environ.get("CXX")
    return (own,) if own else ("g++", "clang++")


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "worthit" / "native"
    except RuntimeError as error:  # nobody's home
        raise Missing(str(error)) from error


def _cpu_flags() -> set[str]:
    return set(_cpuinfo("flags").split())


def _cpu_model() -> str:
    return " ".join(_cpuinfo(key) for key in ("model name", "cpu family", "model", "flags"))


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((x.split(":", 1)[1] for x in lines if x.split(":")[0].strip() == key), "")
