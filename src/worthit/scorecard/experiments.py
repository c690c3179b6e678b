"""Which experiments there are, read from their files: nothing is run, and torch is not needed."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from worthit._record import value
from worthit.errors import InputError, unknown_name
from worthit.techniques import catalogue

HOME = Path(__file__).parents[1] / "lab" / "experiments"


@value
class Entry:
    """An experiment as its file describes it: `title` is the first line of its docstring."""

    id: str
    technique: str
    title: str


@cache
def experiments() -> dict[str, Entry]:
    """Every experiment by id, sorted."""
    found = (_entry(file) for file in sorted(HOME.glob("[!_]*.py")))
    return {entry.id: entry for entry in found}


def experiment_of(name: str) -> str:
    """The id of the experiment called `name`, or of the one that a technique of that name has.

    Raises:
        UnknownName: there is neither; the nearest are suggested.
        InputError: a technique without an experiment.
    """
    known = experiments()
    if name in known:
        return name
    techniques = catalogue()
    if name not in techniques:
        raise unknown_name(
            "experiment", name, sorted({*known, *techniques}), see="worthit list experiments"
        )
    path = techniques[name].experiment
    if path is None:
        raise InputError(
            f"{name} has no experiment yet; all that there are: worthit list experiments"
        )
    return path.partition(":")[0].rpartition(".")[2].replace("_", "-")


def _entry(file: Path) -> Entry:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    title = (ast.get_docstring(tree) or "").partition("\n")[0]
    technique = ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Experiment":
            for keyword in node.keywords:
                if keyword.arg == "technique" and isinstance(keyword.value, ast.Constant):
                    technique = str(keyword.value.value)
    return Entry(file.stem.replace("_", "-"), technique, title)
