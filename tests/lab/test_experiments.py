"""Every experiment of the folder, by walking it: it is whole, fair, honest about cost, and runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worthit.lab.catalogue import find
from worthit.lab.context import Setting, resolve
from worthit.lab.environment import config, key_of
from worthit.lab.experiment import BUDGETS, Experiment, Training
from worthit.lab.matching import counts, matched
from worthit.lab.measure import measure
from worthit.scorecard.experiments import experiments
from worthit.techniques import catalogue

NAMES = tuple(experiments())


@pytest.fixture(params=NAMES)
def experiment(request: pytest.FixtureRequest) -> Experiment:
    return find(request.param)


def settings(experiment: Experiment) -> list[Setting]:
    return [resolve(experiment, name) for name in BUDGETS]


def test_there_are_some() -> None:
    assert {"topk-moe", "mla", "mamba", "speculative-decoding"} <= set(NAMES)


def test_it_is_whole(experiment: Experiment) -> None:
    entry = experiments()[experiment.id]
    assert entry.technique == experiment.technique
    assert entry.technique in catalogue()
    assert entry.title.endswith((".", "?"))
    assert experiment.question.endswith("?")
    assert experiment.expectation.source.id
    assert set(experiment.means) <= {"confirmed", "refuted", "inconclusive"}
    assert experiment.matched.because or experiment.matched.what != ("nothing",)
    ids = {m.id for m in experiment.metrics}
    assert set(experiment.gaps) <= ids
    for name in BUDGETS:
        budget = experiment.budget(name)
        # Fewer make no interval worth reading.
        assert budget.n_seeds >= (2 if name == "smoke" else 3)
        if isinstance(experiment.how, Training) and name != "smoke":
            # One rate is a choice, which the outcome notes; of two, both are edges.
            assert len(budget.learning_rates) != 2


def test_its_technique_points_back() -> None:
    for t in catalogue().values():
        if t.experiment is not None:
            assert find(t.id).technique == t.id


@pytest.mark.slow
def test_arms_are_matched_and_predicted_at_every_budget(experiment: Experiment) -> None:
    for setting in settings(experiment):
        rows = matched(setting, counts(setting))
        assert all(row["is_matched"] for row in rows)
        ids = {m.id for m in experiment.metrics}
        arms = {arm.id for arm in experiment.arms}
        for p in experiment.predicted(setting) if experiment.predicted else ():
            assert p.metric in ids
            assert p.arm in arms
            assert p.basis
        key = key_of(config(setting, 1))
        assert key == key_of(json.loads(json.dumps(config(setting, 1))))


@pytest.mark.slow
def test_smoke_runs_in_a_minute(experiment: Experiment, tmp_path: Path) -> None:
    outcome = measure(experiment, budget="smoke", out=tmp_path, n_threads=1, is_quiet=True)
    assert outcome["state"] in ("confirmed", "refuted", "inconclusive")
    assert len(outcome["verdict"]) == len(experiment.variants)
