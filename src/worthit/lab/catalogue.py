"""From a name to its experiment: found by walking a folder, so that adding one touches no list."""

from __future__ import annotations

import importlib

from worthit.lab.experiment import Experiment
from worthit.scorecard.experiments import experiment_of


def find(name: str) -> Experiment:
    """The experiment called `name`, or the one that the technique of that name points at.

    Raises:
        UnknownName: neither; the nearest are suggested.
        InputError: a technique without an experiment.
    """
    ident = experiment_of(name)
    module = importlib.import_module(f"worthit.lab.experiments.{ident.replace('-', '_')}")
    found: Experiment = module.EXPERIMENT
    if found.id != ident:
        raise AssertionError(f"{module.__name__} holds the experiment {found.id!r}")
    return found
