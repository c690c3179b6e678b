"""The runner on a fake experiment: what is done is kept, what is missing is done, and only that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from lab.fake import BUDGET, FAKE

from worthit.errors import InputError, WorthitError
from worthit.lab.claims import Metric, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Experiment, Matched, Prediction
from worthit.lab.measure import measure


def counting(experiment: Experiment = FAKE) -> tuple[Experiment, list[tuple[str, int]]]:
    """The experiment, and the cells that were run of it."""
    assert isinstance(experiment.how, Custom)
    run, seen = experiment.how.run, []

    def noting(context: Context, arm: Arm, seed: int) -> object:
        seen.append((arm.id, seed))
        return run(context, arm, seed)

    return replace(experiment, how=Custom(run=noting)), seen  # type: ignore[arg-type]  # as run


def test_an_outcome_says_what_was_built_in(tmp_path: Path) -> None:
    outcome = measure(FAKE, out=tmp_path, is_quiet=True)
    assert outcome["state"] == "confirmed"
    time, loss = outcome["effects"]
    # Half the time, within 5 % noise a cell; the losses differ by noise of 0.014.
    assert time["measured"]["low"] < 0.5 < time["measured"]["high"]
    assert time["word"] == "better"
    assert loss["word"] == "same"
    assert [p["agreement"] for p in outcome["predicted"]] == ["agrees", "not predicted"]
    assert json.loads((Path(outcome["folder"]) / "result.json").read_text()) == outcome


def test_cells_that_are_done_are_not_run_again(tmp_path: Path) -> None:
    experiment, seen = counting()
    measure(experiment, out=tmp_path, n_seeds=3, is_quiet=True)
    assert seen == [(arm, seed) for seed in range(3) for arm in ("plain", "quick")]
    seen.clear()
    measure(experiment, out=tmp_path, n_seeds=3, is_quiet=True)
    assert seen == []
    measure(experiment, out=tmp_path, n_seeds=4, is_quiet=True)
    assert seen == [("plain", 3), ("quick", 3)]
    measure(experiment, out=tmp_path, n_seeds=4, is_continued=False, is_quiet=True)
    assert len(seen) == 2 + 8


def test_a_changed_configuration_is_another_run(tmp_path: Path) -> None:
    first = measure(FAKE, out=tmp_path, is_quiet=True)
    slower = replace(FAKE.arms[1], options={"seconds": 1.5})
    second = measure(replace(FAKE, arms=(FAKE.arms[0], slower)), out=tmp_path, is_quiet=True)
    assert first["key"] != second["key"]
    # Claims and words read the same cells anew.
    reworded = replace(FAKE, question="?", claims=FAKE.claims[:1])
    assert measure(reworded, out=tmp_path, is_quiet=True)["key"] == first["key"]


def test_damaged_cells_are_run_again(tmp_path: Path) -> None:
    experiment, seen = counting()
    outcome = measure(experiment, out=tmp_path, is_quiet=True)
    seen.clear()
    folder = Path(outcome["folder"])
    (folder / "cells" / "quick" / "1" / "result.json").write_text('{"format": 1, "val')
    again = measure(experiment, out=tmp_path, is_quiet=True)
    assert seen == [("quick", 1)]
    assert again["effects"] == outcome["effects"]


def test_a_failing_cell_keeps_the_others(tmp_path: Path) -> None:
    assert isinstance(FAKE.how, Custom)
    run = FAKE.how.run

    def failing(context: Context, arm: Arm, seed: int) -> object:
        if (arm.id, seed) == ("quick", 2):
            raise WorthitError("no")
        return run(context, arm, seed)

    broken = replace(FAKE, how=Custom(run=failing))  # type: ignore[arg-type]  # as run
    with pytest.raises(WorthitError, match="no"):
        measure(broken, out=tmp_path, is_quiet=True)
    experiment, seen = counting()
    measure(experiment, out=tmp_path, is_quiet=True)
    assert seen[0] == ("quick", 2)
    assert len(seen) == 5


def test_a_number_that_is_none_is_an_error(tmp_path: Path) -> None:
    broken = replace(FAKE, how=Custom(run=lambda context, arm, seed: {"loss": float("nan")}))
    with pytest.raises(WorthitError, match="loss is not a number"):
        measure(broken, out=tmp_path, is_quiet=True)


def test_a_metric_that_is_not_measured_is_named(tmp_path: Path) -> None:
    broken = replace(FAKE, how=Custom(run=lambda context, arm, seed: {"loss": 1.0}))
    with pytest.raises(WorthitError, match="gave no metric 'seconds', only loss"):
        measure(broken, out=tmp_path, is_quiet=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n_seeds": 0}, "--seeds: must be at least 1"),
        ({"n_threads": 0}, "--threads: must be at least 1"),
        ({"budget": "quik"}, "did you mean quick"),
    ],
)
def test_bad_settings(options: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        measure(FAKE, out=tmp_path, is_quiet=True, **options)  # type: ignore[arg-type]  # bad ones


def test_a_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    outcome = measure(FAKE, out=tmp_path, is_quiet=True)
    file = Path(outcome["folder"]) / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    with pytest.raises(InputError, match="another version of worthit"):
        measure(FAKE, out=tmp_path, is_quiet=True)


def test_one_seed_is_inconclusive(tmp_path: Path) -> None:
    outcome = measure(FAKE, out=tmp_path, n_seeds=1, is_quiet=True)
    assert outcome["state"] == "inconclusive"
    assert "one seed: no interval" in outcome["verdict"][0]
    assert "one seed shows no effect" in outcome["would_change"][0]["text"]


def test_budgets_must_tune_all_arms_alike() -> None:
    assert BUDGET.n_seeds == 5
    with pytest.raises(InputError, match="arms: an experiment compares at least two"):
        replace(FAKE, arms=FAKE.arms[:1])


def test_wall_time_is_matched_once_it_is_known(tmp_path: Path) -> None:
    steps = Metric(id="step_s", name="step", margin=0.1, unit="s", scale="ratio")
    seconds = {"plain": 1.0, "quick": 0.5}
    experiment = replace(
        FAKE,
        how=Custom(run=lambda context, arm, seed: {"step_s": seconds[arm.id]}),
        metrics=(steps,),
        claims=(superior(steps, "quick"),),
        predicted=None,
        matched=Matched(what=("wall time",), within=0.1),
        arms=tuple(
            replace(arm, recipe={"n_steps": n})
            for arm, n in zip(FAKE.arms, (100, 200), strict=True)
        ),
    )
    outcome = measure(experiment, out=tmp_path, is_quiet=True)
    assert outcome["matched"]["checks"][0]["values"] == {"plain": 100.0, "quick": 100.0}
    assert outcome["notes"] == []
    unequal = replace(experiment, arms=FAKE.arms)
    unequal = replace(unequal, arms=tuple(replace(a, recipe={"n_steps": 9}) for a in FAKE.arms))
    outcome = measure(unequal, out=tmp_path, is_quiet=True)
    assert "wall time differs by 50 %" in outcome["notes"][0]
    with pytest.raises(InputError, match="name STEP_SECONDS as a metric"):
        replace(FAKE, matched=Matched(what=("wall time",)))


def test_a_prediction_of_what_does_not_fit_is_no_number(tmp_path: Path) -> None:
    experiment = replace(
        FAKE,
        predicted=lambda setting: [
            Prediction(metric="seconds", arm="quick", value=float("inf"), basis="out of memory")
        ],
    )
    found = measure(experiment, out=tmp_path, is_quiet=True)["predicted"][0]
    assert found["value"] is None
    assert found["agreement"] == "not predicted"
