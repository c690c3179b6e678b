"""docs/lab.md names what there is: claims, metrics, predictions, fields; and leaves none out."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import pytest

import worthit
from worthit.lab import claims, metrics, predict
from worthit.lab.claims import Claim, Metric
from worthit.lab.experiment import Arm, Experiment
from worthit.lab.measure import measure

PAGE = (Path(__file__).parents[2] / "docs" / "lab.md").read_text(encoding="utf-8")


def made_by(module: object, kind: str) -> list[str]:
    return [
        name
        for name, f in inspect.getmembers(module, inspect.isfunction)
        if kind in str(inspect.signature(f).return_annotation)
        and f.__module__ == getattr(module, "__name__", "")
        and not name.startswith("_")
    ]


@pytest.mark.parametrize(
    "name",
    [
        *made_by(claims, Claim.__name__),
        *(m.id for _, m in inspect.getmembers(metrics, lambda m: isinstance(m, Metric))),
        *made_by(predict, "Prediction"),
        *(f.name for f in fields(Arm) if f.name not in ("id", "label")),
        *(f.name for f in fields(Experiment)),
    ],
)
def test_the_page_tells_of(name: str) -> None:
    assert f"`{name}" in PAGE or f"{name}=" in PAGE or f"`*{name}" in PAGE, name


def test_python_and_the_command_line_are_one() -> None:
    assert worthit.measure is measure
