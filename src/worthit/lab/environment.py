"""What a number was measured with: machine, versions, commit; and the key under which it is kept.

Two runs with the same key may share cells: the same data, models, recipes and functions on the same
processor with as many threads. Claims, margins and words are not part of it, so that an outcome can
be read anew; nor is the number of seeds, so that more can be added.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import subprocess
from dataclasses import fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import worthit
from worthit.calibrate._probes import cpu_name, n_cores
from worthit.lab.context import Setting
from worthit.lab.experiment import Arm, Training
from worthit.spec.codec import to_json

# Raised when cells of older runs no longer mean the same.
FORMAT = 1
VERSIONS_OF = ("torch", "numpy", "scipy")
# What decides neither the numbers of a cell nor its meaning.
NOT_IN_KEY = ("n_seeds", "seconds", "setup_seconds")
# Calls that describe: their fields are in the configuration by value, or are words.
DESCRIPTIONS = (
    "Budget",
    "Expectation",
    "Experiment",
    "Metric",
    "Source",
    "Training",
    "replace",
)


def config(setting: Setting, n_threads: int) -> dict[str, Any]:
    """Everything that decides what a cell's numbers are, as plain JSON."""
    e, budget = setting.experiment, setting.budget
    size = {f.name: getattr(budget, f.name) for f in fields(budget) if f.name not in NOT_IN_KEY}
    return {
        "format": FORMAT,
        "experiment": e.id,
        "budget_name": setting.budget_name,
        "budget": _plain(size),
        "kind": type(e.how).__name__.lower(),
        "recipe": _plain(e.how.recipe) if isinstance(e.how, Training) else {},
        "arms": {arm.id: _arm(setting, arm) for arm in e.arms},
        "code": code_digest(e.id),
        "machine": {"cpu": cpu_name(), "threads": n_threads},
    }


def key_of(config: dict[str, Any]) -> str:
    """Ten hexadecimal digits that change when anything in `config` does."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def environment(n_threads: int) -> dict[str, Any]:
    """The machine, the versions and the commit, for the record."""
    return {
        "cpu": cpu_name(),
        "cores": n_cores(),
        "threads": n_threads,
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "worthit": worthit.__version__,
        **{name: version_of(name) for name in VERSIONS_OF},
        "git": git_state(),
    }


def version_of(package: str) -> str | None:
    """The version that is installed, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def git_state() -> dict[str, Any] | None:
    """The commit that this code stands at, and whether anything was changed since; or None."""
    home = Path(worthit.__file__).parent
    commit = _git(home, "rev-parse", "HEAD")
    if not commit:
        return None
    # Results are what runs leave behind, not what they are made of.
    changed = _git(home, "status", "--porcelain", "--", ".", ":(exclude)scorecard/results")
    return {"commit": commit, "is_dirty": bool(changed)}


def _git(folder: Path, *arguments: str) -> str:
    try:
        run = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def code_digest(experiment_id: str) -> str:
    """A digest of the experiment's functions, whatever their comments and layout.

    Read from its file and from the files of its folder that it imports.
    """
    home = Path(__file__).parent / "experiments"
    file = home / f"{experiment_id.replace('-', '_')}.py"
    if not file.is_file():
        return ""  # an experiment that was made by hand and lives in no file
    source = file.read_text(encoding="utf-8")
    shared = sorted(
        node.module.rpartition(".")[2]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        and node.module is not None
        and node.module.startswith("worthit.lab.experiments.")
    )
    parts = [source, *((home / f"{name}.py").read_text(encoding="utf-8") for name in shared)]
    return hashlib.sha256("".join(map(digest_of, parts)).encode()).hexdigest()[:16]


def digest_of(source: str) -> str:
    """A digest of what a file does: docstrings are left out, and of descriptions all but lambdas.

    What a description says enters the configuration by value, where it matters.

    >>> digest_of("A = 1  # one") == digest_of("A = 1")
    True
    >>> digest_of("E = Experiment(id='a')") == digest_of("E = Experiment(id='b')")
    True
    >>> digest_of("E = Training(data=lambda b: 1)") == digest_of("E = Training(data=lambda b: 2)")
    False
    """
    parts: list[str] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and _is_description(node.value):
            parts += [ast.dump(part) for part in ast.walk(node) if isinstance(part, ast.Lambda)]
        elif not _is_text(node):
            for inner in ast.walk(node):
                body = getattr(inner, "body", None)
                if isinstance(body, list) and len(body) > 1 and _is_text(body[0]):
                    del body[0]
            parts.append(ast.dump(node))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _is_description(node: ast.expr) -> bool:
    if isinstance(node, ast.Dict):
        return all(isinstance(value, ast.Name) or _is_description(value) for value in node.values)
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") in DESCRIPTIONS


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _arm(setting: Setting, arm: Arm) -> dict[str, Any]:
    spec = setting.specs.get(arm.id)
    return {
        "model": None if spec is None else to_json(spec),
        "recipe": _plain(arm.recipe),
        "learning_rates": list(setting.experiment.grid(arm, setting.budget)),
        "options": _plain(arm.options),
        "loss": _name(arm.loss),
        "after_step": _name(arm.after_step),
        "build": _name(arm.build),
    }


def _plain(value: Any) -> Any:
    """`value` as JSON; functions by their names, records by their fields."""
    found = to_json(value)
    return json.loads(json.dumps(found, sort_keys=True, default=_name))


def _name(value: Any) -> str | None:
    if value is None:
        return None
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else repr(value)
