"""Real training of tiny models: tuned alike, seeds apart, results that are the modules' own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lab.fake import SOURCE
from torch import Tensor, nn

from worthit.errors import SpecError
from worthit.lab import models, predict
from worthit.lab.claims import no_worse
from worthit.lab.context import Setting
from worthit.lab.experiment import (
    Arm,
    Budget,
    Expectation,
    Experiment,
    Matched,
    Measures,
    Prediction,
    Training,
    Trial,
)
from worthit.lab.measure import measure
from worthit.lab.metrics import CACHE_BYTES, LOSS, PARAMETERS, STEP_SECONDS, TOKEN_SECONDS
from worthit.lab.runs import Run
from worthit.lab.tasks import task
from worthit.nn import build
from worthit.train import Batch, Recipe, next_token_loss, seeded, train
from worthit.train.batch import Data

TINY = Budget(
    n_seeds=2,
    n_steps=6,
    batch_size=4,
    learning_rates=(1e-3, 1e-2, 1e-1),
    n_tuning_steps=3,
    sizes={"d_model": 16},
)


def parity(budget: Budget) -> Data:
    """The smallest task."""
    return task("parity", seq_len=8)


def small(budget: Budget, n_kv_heads: int = 2) -> Any:
    d_model = budget.sizes["d_model"]
    mixer = models.attention(d_model, 8, n_kv_heads=n_kv_heads)
    return models.decoder(d_model, n_layers=1, mixers=mixer)


def experiment(**changes: Any) -> Experiment:
    fields: dict[str, Any] = {
        "id": "tiny",
        "technique": "mqa",
        "question": "Does it run?",
        "expectation": Expectation(statement="It runs.", source=SOURCE, refuted_if="It does not."),
        "how": Training(data=parity),
        "matched": Matched(what=("tokens",)),
        "arms": (
            Arm(id="two", label="two heads", model=small),
            Arm(id="one", label="one head", model=lambda budget: small(budget, 1)),
        ),
        "metrics": (LOSS,),
        "claims": (no_worse(LOSS, "one", margin=5.0),),
        "budgets": {"smoke": TINY, "quick": TINY, "full": TINY},
    }
    return Experiment(**(fields | changes))


def extra(trial: Trial) -> Measures:
    """What an experiment scores by itself."""
    return {
        "seed": float(trial.seed),
        "by length": ((8.0, 0.5), (16.0, 0.25)),
        "steps": float(trial.history.steps[-1]["step"]),
    }


def predictions(setting: Setting) -> list[Prediction]:
    """Of everything that cost can see, and of what it cannot."""
    return [
        *predict.counted(setting, "parameters", "parameters"),
        *predict.counted(setting, "cache_bytes", "cache bytes"),
        *predict.train_time(setting, "step_s"),
        *predict.decode_time(setting, "token_s", prompt=4, output=4),
        *predict.unseen(setting, "loss"),
    ]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of everything, looked at from several sides."""
    e = experiment(
        how=Training(data=parity, score=extra),
        metrics=(LOSS, PARAMETERS, CACHE_BYTES, STEP_SECONDS, TOKEN_SECONDS),
        predicted=predictions,
    )
    return measure(e, out=tmp_path_factory.mktemp("runs"), is_quiet=True)


def test_every_arm_is_tuned_on_the_same_grid(outcome: dict[str, Any]) -> None:
    for arm in outcome["arms"].values():
        tuning = arm["tuning"]
        assert [row["learning_rate"] for row in tuning["results"]] == [1e-3, 1e-2, 1e-1]
        best = min(tuning["results"], key=lambda row: row["losses"][0])
        assert tuning["best"] == best["learning_rate"]
        assert tuning["is_edge"] == (tuning["best"] != 1e-2)
    assert outcome["matched"]["checks"][0]["values"] == {"two": 6 * 4 * 8, "one": 6 * 4 * 8}


def test_counts_and_speeds_are_of_the_real_modules(outcome: dict[str, Any]) -> None:
    found = outcome["arms"]["one"]["metrics"]
    # Keys and values of one head of 8, of 8 tokens, in fp32.
    assert found["cache_bytes"]["measured"]["estimate"] == 2 * 8 * 8 * 4
    spec = replace(small(TINY, 1), vocab_size=2)
    assert found["parameters"]["measured"]["estimate"] == sum(
        p.numel() for p in build(spec).parameters()
    )
    by_metric = {p["metric"]: p for p in outcome["predicted"]}
    assert by_metric["cache_bytes"]["agreement"] == by_metric["parameters"]["agreement"] == "agrees"
    assert by_metric["cache_bytes"]["value"] == 0.5
    assert by_metric["loss"]["agreement"] == "not predicted"
    assert 0 < by_metric["step_s"]["value"] <= 1
    assert outcome["arms"]["one"]["spread"]["step_s"]["0"]["n"] == 9


def test_an_experiment_scores_what_it_wants(outcome: dict[str, Any]) -> None:
    curves = outcome["arms"]["two"]["curves"]
    assert curves["by length"]["1"] == [[8.0, 0.5], [16.0, 0.25]]
    assert "training loss" in curves


def test_a_cell_is_what_training_alone_gives(tmp_path: Path) -> None:
    """The loss of a cell is that of the plain loop with its seed, rate, and steps."""
    e = experiment(budgets=dict.fromkeys(("smoke", "quick", "full"), replace(TINY, n_seeds=1)))
    outcome = measure(e, out=tmp_path, is_quiet=True)
    arm = outcome["arms"]["two"]
    data = parity(TINY)
    spec = replace(small(TINY), vocab_size=data.vocab_size, context_len=64)
    model = seeded(spec)(0)
    rate = arm["tuning"]["best"]
    recipe = Recipe(n_steps=6, batch_size=4, lr=rate, warmup_steps=0, eval_every=0)
    train(model, data, recipe, seed=0)
    total = count = 0.0
    with torch.no_grad():
        for batch in data.held_out("test"):
            n = int((batch.targets != -100).sum())
            total, count = total + float(next_token_loss(model, batch)) * n, count + n
    assert arm["metrics"]["loss"]["by_seed"]["0"] == pytest.approx(total / count, abs=1e-5)


def exploding(model: nn.Module, batch: Batch) -> Tensor:
    return next_token_loss(model, batch) * float("nan")


def test_what_diverges_is_a_guess_and_is_counted(tmp_path: Path) -> None:
    base = experiment()
    broken = replace(base.arms[1], loss=exploding)
    outcome = measure(replace(base, arms=(base.arms[0], broken)), out=tmp_path, is_quiet=True)
    arm = outcome["arms"]["one"]
    # A uniform guess between two answers.
    assert arm["metrics"]["loss"]["measured"]["estimate"] == pytest.approx(0.693147, abs=1e-6)
    assert all(row["losses"] == [None] for row in arm["tuning"]["results"])
    assert "one: 2 of 2 seeds diverged" in outcome["notes"]


def test_arms_that_should_match_and_do_not_are_refused(tmp_path: Path) -> None:
    e = experiment(matched=Matched(what=("parameters",), within=0.01))
    with pytest.raises(SpecError, match="parameters must match within 1 %, got two"):
        measure(e, out=tmp_path, is_quiet=True)
    assert not list(tmp_path.rglob("result.json"))


def test_grids_are_of_one_length() -> None:
    arm = Arm(id="one", label="one", model=small, learning_rates=(1e-3,))
    with pytest.raises(SpecError, match="as many learning rates as the budget"):
        experiment(arms=(experiment().arms[0], arm))
    with pytest.raises(SpecError, match="must ascend"):
        replace(TINY, learning_rates=(1e-2, 1e-3))


@pytest.mark.slow
def test_more_seeds_leave_the_first_alone(tmp_path: Path) -> None:
    first = measure(experiment(), n_seeds=1, out=tmp_path, is_quiet=True)
    more = measure(experiment(), n_seeds=3, out=tmp_path, is_quiet=True)
    for arm in ("two", "one"):
        before, after = (o["arms"][arm]["metrics"]["loss"]["by_seed"] for o in (first, more))
        assert after["0"] == before["0"]
        assert len(after) == 3
    assert more["claims"][0]["state"] in ("confirmed", "refuted", "inconclusive")


@pytest.mark.slow
def test_a_stop_between_training_and_its_cells_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(experiment(), out=tmp_path / "a", is_quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_cell", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measure(experiment(), out=tmp_path / "b", is_quiet=True)
    continued = measure(experiment(), out=tmp_path / "b", is_quiet=True)
    assert continued["effects"] == whole["effects"]
    assert not list((tmp_path / "b").rglob("checkpoint*")), "what is done needs no checkpoint"


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
