"""The judge and all below it start without torch: the lint rule, checked at run time."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import worthit

HEAVY = ("torch", "transformers")
# Their functions import what they measure or trace; the modules themselves may not.
TORCH_FREE = ("spec", "cost", "techniques", "judge", "report", "cli", "web", "calibrate")


def modules(package: str) -> Iterator[str]:
    """`package` and everything in it, by walking the folder: no list to keep."""
    home = Path(worthit.__file__).parent / package
    if home.is_dir():
        yield f"worthit.{package}"
        for found in pkgutil.walk_packages([str(home)], f"worthit.{package}."):
            yield found.name
    elif home.with_suffix(".py").exists():
        yield f"worthit.{package}"


def import_without(heavy: tuple[str, ...], names: list[str]) -> subprocess.CompletedProcess[str]:
    """Import `names` in a fresh interpreter in which importing `heavy` fails."""
    code = (
        f"import importlib, sys\n"
        f"for name in {heavy!r}: sys.modules[name] = None\n"
        f"for name in {names!r}:\n"
        f"    try: importlib.import_module(name)\n"
        f"    except ImportError as error: sys.exit(f'{{name}}: {{error}}')\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("package", TORCH_FREE)
def test_imports_without_torch(package: str) -> None:
    names = list(modules(package))
    if not names:
        pytest.skip(f"worthit.{package} does not exist yet")
    run = import_without(HEAVY, names)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", HEAVY)
def test_control_the_blocker_blocks(name: str) -> None:
    run = import_without(HEAVY, [name])
    assert run.returncode != 0
    assert f"{name}: " in run.stderr


def test_the_package_itself_is_light() -> None:
    """`import worthit` pulls in no drawing, no plotting, no validation: faces load their own."""
    code = "import sys, worthit; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "worthit" in loaded  # control: the list is the real one
    assert not loaded & {"torch", "transformers", "matplotlib", "rich"}
