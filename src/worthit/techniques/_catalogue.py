"""Find every record: `<family>/<id with underscores>.py` holding `TECHNIQUE`."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import cache
from pathlib import Path

from worthit.errors import unknown_name
from worthit.techniques._record import Technique

# The order in which families are shown; a folder not named here comes last.
FAMILIES = (
    "attention",
    "position",
    "norm",
    "ssm",
    "moe",
    "depth",
    "cache",
    "decoding",
    "precision",
    "optimizer",
    "parallel",
    "alignment",
    "merging",
    "interpretability",
    "reasoning",
)


@cache
def catalogue() -> dict[str, Technique]:
    """Every technique by id, in the order of `FAMILIES` and then of the ids."""
    root = Path(__file__).parent
    folders = sorted(
        (p for p in root.iterdir() if p.is_dir() and not p.name.startswith("_")),
        key=lambda p: (FAMILIES.index(p.name) if p.name in FAMILIES else len(FAMILIES), p.name),
    )
    found: dict[str, Technique] = {}
    for folder in folders:
        for stem in sorted(p.stem for p in folder.glob("[!_]*.py")):
            module = importlib.import_module(f"worthit.techniques.{folder.name}.{stem}")
            record: Technique = module.TECHNIQUE
            if record.id != stem.replace("_", "-"):
                raise AssertionError(f"{folder.name}/{stem}.py holds the id {record.id!r}")
            if record.id in found:
                raise AssertionError(f"two records are called {record.id!r}")
            found[record.id] = replace(record, family=folder.name)
    return found


def technique(name: str) -> Technique:
    """The technique called `name`.

    Raises:
        UnknownName: there is none; the nearest are suggested.
    """
    try:
        return catalogue()[name]
    except KeyError:
        raise unknown_name("technique", name, catalogue()) from None
