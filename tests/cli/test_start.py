"""A verdict starts fast: what must not be imported is not, and the end of a pipe is no error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from worthit.cli._group import VERBS, cli

HEAVY = {"rich", "pydantic", "torch", "matplotlib", "transformers", "importlib.metadata"}
RUN = "import sys; from worthit.cli.main import run; code = run({!r}.split()); "


def imported_by(line: str) -> set[str]:
    code = RUN.format(line) + "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("line", ["judge grammar-tutor", "cost grammar-tutor", "explain gqa"])
def test_what_a_verdict_imports(line: str) -> None:
    loaded = imported_by(line)
    assert "numpy" in loaded  # control: the list is the real one
    assert not loaded & HEAVY


@pytest.mark.parametrize("line", ["--help", "--version", "list models"])
def test_what_help_imports(line: str) -> None:
    assert not imported_by(line) & (HEAVY | ({"numpy"} if line.startswith("--") else set()))


def test_help_tells_of_every_verb() -> None:
    context = cli.make_context("worthit", [], resilient_parsing=True)
    for name, line in VERBS.items():
        verb = cli.get_command(context, name)
        assert verb is not None
        assert verb.name == name
        assert (verb.help or "").partition("\n\n")[0].replace("\n", " ") == line
        for below in getattr(verb, "commands", {"": verb}).values():
            assert any(o.name == "is_json" for o in below.params), f"{name} lacks --json"


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    code = "from worthit.cli.main import main; main()"
    shell = f'"{sys.executable}" -c "{code}" list models | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141)
    assert done.stdout.startswith("MODEL")
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_sentence() -> None:
    code = "from worthit.cli.main import main; main()"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "list", "workloads"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "worthit: the result could not be written: no space left on device"
    ]
